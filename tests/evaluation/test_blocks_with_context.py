"""The loss over growing context, by hand: which tokens are scored, behind how many, and what is written of it."""

import math
import statistics
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from llp.errors import SettingError
from llp.evaluation.context import (
    ContextCurve,
    ContextLoss,
    RecallLoss,
    _block_starts,
    context_lengths,
    draw,
    loss_by_context,
    write,
)

# Documents of 10, 3 and 8 tokens, each behind its start token.
DOCUMENTS = [
    SimpleNamespace(start=0, tokens=10),
    SimpleNamespace(start=11, tokens=3),
    SimpleNamespace(start=15, tokens=8),
]


@pytest.mark.parametrize(
    ("longest", "expected"),
    [(1, [0, 1]), (2, [0, 1, 2]), (8, [0, 1, 2, 4, 8]), (9, [0, 1, 2, 4, 8, 9]), (20, [0, 1, 2, 4, 8, 16, 20])],
)
def test_contexts_are_the_powers_of_two_below_the_longest(longest, expected):
    assert context_lengths(longest) == expected


def test_blocks_stand_wherever_the_longest_context_and_the_block_have_room():
    """4 tokens before the first input and 2 behind it, all of one document: 5 places in the first, 3 in the last."""
    everywhere = [4, 5, 6, 7, 8, 19, 20, 21]
    assert _block_starts(DOCUMENTS, longest=4, block_len=2, n_blocks=8) == everywhere
    assert _block_starts(DOCUMENTS, longest=4, block_len=2, n_blocks=100) == everywhere  # none twice
    assert _block_starts(DOCUMENTS, longest=4, block_len=2, n_blocks=2) == [4, 21]
    assert _block_starts(DOCUMENTS, longest=4, block_len=2, n_blocks=3) == [4, 7, 21]  # places 0, 3.5 and 7 of 0 .. 7
    assert _block_starts(DOCUMENTS, longest=4, block_len=2, n_blocks=1) == [4]
    assert _block_starts(DOCUMENTS, longest=8, block_len=2, n_blocks=9) == [8]  # the only place of all
    with pytest.raises(SettingError, match="max_context = 9: no document has that many tokens"):
        _block_starts(DOCUMENTS, longest=9, block_len=2, n_blocks=9)


class Known:
    """A model whose loss is 0.001 a token's number and 1 a token of context; it keeps what it was given."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.batches: list[tuple[torch.Tensor, torch.Tensor]] = []

    def scoring_window(self, train_window_len, window_len, stride):
        assert (train_window_len, window_len, stride) == (8, "length asked for", "stride asked for")
        return 9, 3

    def decoder(self, inputs, targets):
        self.batches.append((inputs, targets))
        context = inputs.shape[1] - targets.shape[1]
        return SimpleNamespace(each=context + 0.001 * targets)


TOKENS = np.arange(100, 124, dtype=np.uint8)


def data(batch_size=1, tokens=TOKENS):
    files = {
        "validation": SimpleNamespace(tokens=tokens, documents=DOCUMENTS),
        "test": SimpleNamespace(tokens=TOKENS[::-1].copy(), documents=DOCUMENTS),
    }
    return SimpleNamespace(
        window_len=8,
        scoring_window_len="length asked for",
        scoring_stride="stride asked for",
        batch_size=batch_size,
        checked_file=files.__getitem__,
    )


def test_the_same_tokens_are_scored_behind_every_context():
    model = Known()
    curve, recall = loss_by_context(model, data(), max_context=4, n_blocks=3, block_len=2)
    assert recall == []
    targets = [105, 106, 108, 109, 122, 123]  # behind the inputs 4, 7 and 21
    for point, context in zip(curve, [0, 1, 2, 4], strict=True):
        loss = context + 0.001 * sum(targets) / 6
        error = 0.001 * statistics.stdev([105.5, 108.5, 122.5]) / math.sqrt(3)  # of the means of three blocks
        expected = (context, loss, error, math.exp(loss), 6, 3, math.nan, 0, loss)  # no token twice: nothing to recall
        assert point == pytest.approx(expected, rel=1e-4, nan_ok=True)
    one_by_one = [(inputs.tolist(), targets.tolist()) for inputs, targets in model.batches[-3:]]
    assert one_by_one == [
        ([[100, 101, 102, 103, 104, 105]], [[105, 106]]),
        ([[103, 104, 105, 106, 107, 108]], [[108, 109]]),
        ([[117, 118, 119, 120, 121, 122]], [[122, 123]]),
    ]


def test_batches_hold_as_many_tokens_as_training_ones():
    model = Known()
    loss_by_context(model, data(batch_size=2), max_context=4, n_blocks=8, block_len=2)  # 2 * 8 // (4 + 2)
    assert [len(inputs) for inputs, _ in model.batches] == [2, 2, 2, 2] * 4


def test_by_default_a_block_is_a_stride_and_the_context_what_its_window_has():
    curve = loss_by_context(Known(), data()).points  # 9 and 3: 6 tokens before a block of 3
    assert [point.context for point in curve] == [0, 1, 2, 4, 6]
    assert curve[0].targets == 3 * (2 + 0 + 0)  # places: 10 - 6 - 3 + 1 in the first document, and none elsewhere
    assert loss_by_context(Known(), data(), n_blocks=1, split="test").points[0].loss == pytest.approx(
        0.001 * (123 - 7 + 123 - 8 + 123 - 9) / 3
    )


def test_recall_tokens_are_those_of_the_longest_context():
    """Two tokens behind each of the inputs 4, 7 and 21, and the four tokens before that input."""
    tokens = TOKENS.copy()
    tokens[:11] = [9, 6, 6, 2, 6, 2, 7, 2, 6, 6, 8]
    tokens[20:23] = 117
    # 9 6 6 2 6, then 2 7: 6 2 stood two tokens before, 2 7 nowhere. 2 6 2 7 2, then 6 6: 2 6 stood four tokens before,
    # where the context begins, and 6 6 only before that. The last block begins with the third of three equal tokens.
    recall, others = {(1, 1): 117, (2, 2): 2, (3, 4): 6}, [7, 6, 123]
    curve = loss_by_context(Known(), data(tokens=tokens), max_context=4, n_blocks=3, block_len=2)
    by_distance = iter(curve.recall)
    for point, context in zip(curve.points, [0, 1, 2, 4], strict=True):
        assert point.recall_targets == 3
        assert point.recall_loss == pytest.approx(context + 0.001 * sum(recall.values()) / 3, rel=1e-4)
        assert point.other_loss == pytest.approx(context + 0.001 * sum(others) / 3, rel=1e-4)
        for bounds, target in recall.items():
            assert next(by_distance) == pytest.approx((context, *bounds, 1, context + 0.001 * target), rel=1e-4)
    assert not [*by_distance]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_blocks": 0}, "n_blocks = 0"),
        ({"block_len": 0}, "block_len = 0: set it to 1 .. 3"),
        ({"block_len": 4}, "block_len = 4: set it to 1 .. 3"),
        ({"max_context": 0}, "max_context = 0"),
    ],
)
def test_settings_that_can_not_be_used(settings, message):
    with pytest.raises(SettingError, match=message):
        loss_by_context(Known(), data(), **settings)
    loss_by_context(Known(), data(), n_blocks=1, block_len=1, max_context=1)  # the least


CURVE = ContextCurve(
    [
        ContextLoss(0, 3.0, 0.5, 20.5, 6, 3, 2.5, 2, 3.25),
        ContextLoss(1, 2.5, 0.25, 12.0, 6, 3, 1.0, 2, 3.25),
        ContextLoss(4, 2.0, 0.125, 7.5, 6, 3, 0.5, 2, 2.75),
    ],
    [RecallLoss(0, 3, 4, 2, 2.5), RecallLoss(1, 3, 4, 2, 1.0), RecallLoss(4, 3, 4, 2, 0.5)],
)


def test_the_picture_shows_the_curve():
    figure = draw(CURVE, "A model")
    axes = figure.axes[0]
    line = axes.lines[0]
    assert line.get_xydata().tolist() == [[0, 3.0], [1, 2.5], [4, 2.0]]
    assert line.get_marker() == "o"
    assert figure.get_suptitle() == "A model"
    assert axes.get_xlabel() == "context before the scored tokens (tokens)"
    assert axes.get_ylabel() == "loss (nats per token)"
    scale = axes.xaxis.get_transform()  # 0 has a place, and each power of two is as far from the next
    places = scale.transform(np.array([0.0, 1.0, 2.0, 4.0]))
    assert places[0] == 0
    assert places[3] - places[2] == pytest.approx(places[2] - places[1])
    assert axes.xaxis.get_major_locator()().tolist()[-3:] == [1, 2, 4]


def test_the_curve_is_written_as_table_picture_and_tensorboard_tag(tmp_path):
    (tmp_path / "context.csv").write_text("an older one")
    names = ["context.csv", "context_recall.csv", "context.png"]
    assert write(CURVE, tmp_path, "A model") == [tmp_path / name for name in names]
    table = "context,loss,standard_error,perplexity,targets,blocks,recall_loss,recall_targets,other_loss\n"
    table += "0,3.0,0.5,20.5,6,3,2.5,2,3.25\n1,2.5,0.25,12.0,6,3,1.0,2,3.25\n4,2.0,0.125,7.5,6,3,0.5,2,2.75\n"
    assert (tmp_path / "context.csv").read_bytes().decode() == table
    table = "context,first,last,targets,loss\n0,3,4,2,2.5\n1,3,4,2,1.0\n4,3,4,2,0.5\n"
    assert (tmp_path / "context_recall.csv").read_bytes().decode() == table
    picture = (tmp_path / "context.png").read_bytes()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    assert [int.from_bytes(picture[at : at + 4], "big") for at in (16, 20)] == [1650, 600]  # 11 by 4 inches at 150 dpi
    events = EventAccumulator(str(tmp_path))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("context/loss")] == [(0, 3.0), (1, 2.5), (4, 2.0)]
    assert events.Tags()["images"] == ["context"]
    others = {path.name for path in tmp_path.iterdir() if not path.name.startswith("events.")}
    assert others == set(names)  # nothing unfinished, no older one
