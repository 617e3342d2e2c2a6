"""The picture of the loss over the context: what it shows, and how sure it is."""

import math

import pytest

from llp.evaluation.context import ContextCurve, ContextLoss, RecallLoss, draw

CONTEXTS = (0, 1, 2, 4, 5)
POINTS = [ContextLoss(n, 3.0 - n / 8, 0.25, 1.0, 128, 32, 2.0 - n / 8, 32, 4.0 - n / 8) for n in CONTEXTS]
RECALL = [RecallLoss(n, first, last, 16, first - n / 8) for n in CONTEXTS for first, last in ((1, 1), (3, 4))]
CURVE = ContextCurve(POINTS, RECALL)


def test_the_picture_shows_its_uncertainty_and_says_what_is_drawn():
    figure = draw(CURVE, "LLP: 128 tokens")
    axes = figure.axes[0]
    (container,) = axes.containers
    line, _, (bars,) = container.lines
    assert list(line.get_xdata()) == [0, 1, 2, 4, 5]
    assert list(line.get_ydata()) == [point.loss for point in POINTS]
    for segment, point in zip(bars.get_segments(), POINTS, strict=True):
        assert segment[:, 1] == pytest.approx([point.loss - 0.25, point.loss + 0.25])
    assert figure.get_suptitle() == "LLP: 128 tokens"
    assert "tokens" in axes.get_xlabel()
    assert "nats" in axes.get_ylabel()
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert sorted(labels) == ["mean of 32 blocks ± its standard error", "other tokens", "recall tokens"]
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert drawn["recall tokens"] == [[n, 2.0 - n / 8] for n in CONTEXTS]
    assert drawn["other tokens"] == [[n, 4.0 - n / 8] for n in CONTEXTS]


def test_recall_tokens_have_a_line_for_each_bin_of_distances():
    axes = draw(CURVE, "").axes[1]
    drawn = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert drawn == {
        "1 .. 1 back": [[n, 1 - n / 8] for n in CONTEXTS],
        "3 .. 4 back": [[n, 3 - n / 8] for n in CONTEXTS],
    }
    assert len({line.get_color() for line in axes.lines}) == 2
    assert len(axes.get_legend().get_texts()) == 2
    assert draw(ContextCurve(POINTS, []), "").axes[1].get_legend() is None


def test_a_single_block_has_no_error_to_show():
    axes = draw(ContextCurve([point._replace(standard_error=math.nan, blocks=1) for point in POINTS], []), "").axes[0]
    assert "one block" in [text.get_text() for text in axes.get_legend().get_texts()]
