"""The picture of the loss over the context: what it shows, and how sure it is."""

import math

import pytest

from llp.evaluation.context import ContextLoss, draw

CURVE = [ContextLoss(context, 3.0 - context / 8, 0.25, 1.0, 128, 32) for context in (0, 1, 2, 4, 5)]


def test_the_picture_shows_its_uncertainty_and_says_what_is_drawn():
    (axes,) = draw(CURVE, "LLP: 128 tokens").axes
    (container,) = axes.containers
    line, _, (bars,) = container.lines
    assert list(line.get_xdata()) == [0, 1, 2, 4, 5]
    assert list(line.get_ydata()) == [point.loss for point in CURVE]
    for segment, point in zip(bars.get_segments(), CURVE, strict=True):
        assert segment[:, 1] == pytest.approx([point.loss - 0.25, point.loss + 0.25])
    assert axes.get_title() == "LLP: 128 tokens"
    assert "tokens" in axes.get_xlabel()
    assert "nats" in axes.get_ylabel()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["mean of 32 blocks ± its standard error"]


def test_a_single_block_has_no_error_to_show():
    curve = [point._replace(standard_error=math.nan, blocks=1) for point in CURVE]
    (axes,) = draw(curve, "one block").axes
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["one block"]
