"""The loss over growing context: which tokens are scored, behind how many, and what is written of it."""

import math

import pytest
import scipy.stats
import torch
import torch.nn.functional as F

from helpers.corpus import Given
from helpers.prepared import prepared
from helpers.runs import curves
from helpers.small_models import build
from llp.errors import SettingError
from llp.evaluation.context import ContextLoss, loss_by_context, write

TEXTS = {
    "train": {"t": "a text of more than one window"},
    "validation": {"a": "abcdefghij", "b": "klm", "c": "nopqrstu"},
    "test": {"d": "vwxyzabcdefghijk"},
}


@pytest.fixture
def model():
    return build("Transformer", vocab_size=257)


@pytest.fixture
def data(tmp_path):
    return prepared(Given(TEXTS, cache_dir=str(tmp_path), window_len=8, batch_size=1))


def by_hand(model, tokens, starts, context, block_len):
    """A point of the curve, of blocks whose first inputs are these."""
    means = []
    for start in starts:
        window = torch.from_numpy(tokens[start - context : start + block_len + 1].astype("int64"))
        with torch.no_grad():
            logits = model(window[None, :-1])[0, -block_len:]
        means.append(F.cross_entropy(logits, window[-block_len:]).item())
    loss = sum(means) / len(means)
    return context, loss, scipy.stats.sem(means), math.exp(loss), len(starts) * block_len, len(starts)


@pytest.mark.parametrize(
    ("longest", "n_blocks", "starts"),
    [
        # Documents of 10, 3 and 8 tokens begin at 0, 11 and 15. With 4 tokens before the first input and 2 behind it,
        # there is room at 5 positions in the first, and at 3 in the last.
        (4, 8, [4, 5, 6, 7, 8, 19, 20, 21]),
        (4, 100, [4, 5, 6, 7, 8, 19, 20, 21]),  # none twice
        (4, 3, [4, 7, 21]),  # 0, 3.5 and 7 of 0 .. 7
        (4, 2, [4, 21]),
        (6, 9, [6, 7, 8, 21]),
    ],
)
def test_the_same_tokens_are_scored_behind_every_context(model, data, longest, n_blocks, starts):
    curve = loss_by_context(model, data, longest, n_blocks=n_blocks, block_len=2)
    assert [point.context for point in curve] == [context for context in (0, 1, 2, 4, 6) if context <= longest]
    for point in curve:
        expected = by_hand(model, data.files["validation"].tokens, starts, point.context, 2)
        assert point == pytest.approx(expected, rel=1e-9)


def test_by_default_a_block_is_a_stride_and_the_context_what_its_window_has(model, data):
    curve = loss_by_context(model, data, split="test")  # windows of 8, stride 4
    assert [point.context for point in curve] == [0, 1, 2, 4]
    for point in curve:
        expected = by_hand(model, data.checked_file("test").tokens, range(4, 13), point.context, 4)
        assert point == pytest.approx(expected, rel=1e-9)


def test_by_default_the_context_is_at_most_what_the_longest_document_has(model, tmp_path):
    data = prepared(Given(TEXTS, cache_dir=str(tmp_path), window_len=16, batch_size=1))
    curve = loss_by_context(model, data, block_len=2)
    assert curve[-1][0] == 8  # of 10 tokens in the longest
    assert curve[-1].blocks == 1


def test_a_block_that_no_document_holds_is_named(model, tmp_path):
    texts = {**TEXTS, "validation": {"a": "abc", "b": "de"}}
    data = prepared(Given(texts, cache_dir=str(tmp_path), window_len=8, batch_size=1))
    with pytest.raises(SettingError, match="block_len = 4: no document is longer"):
        loss_by_context(model, data)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_blocks": 0}, "n_blocks = 0"),
        ({"block_len": 0}, "block_len = 0: set it to 1 .. 4"),
        ({"block_len": 5}, "block_len = 5: set it to 1 .. 4"),
        ({"max_context": 0}, "max_context = 0"),
        ({"max_context": 9, "block_len": 2}, "max_context = 9: set it to 1 or more, and to 8 at most"),
    ],
)
def test_settings_that_can_not_be_used(model, data, settings, message):
    with pytest.raises(SettingError, match=message):
        loss_by_context(model, data, **settings)
    loss_by_context(model, data, n_blocks=1, block_len=1, max_context=1)  # the least


CURVE = [
    ContextLoss(0, 3.0, 0.5, 20.5, 6, 3),
    ContextLoss(1, 2.5, 0.25, 12.0, 6, 3),
    ContextLoss(4, 2.0, 0.125, 7.5, 6, 3),
]


def test_the_curve_is_written_as_table_plot_and_tensorboard_tag(tmp_path):
    (tmp_path / "context.csv").write_text("an older one")
    names = ["context.csv", "context.png"]
    assert write(CURVE, tmp_path, "A model") == [tmp_path / name for name in names]
    assert (tmp_path / "context.csv").read_text() == (
        "context,loss,standard_error,perplexity,targets,blocks\n"
        "0,3.0,0.5,20.5,6,3\n1,2.5,0.25,12.0,6,3\n4,2.0,0.125,7.5,6,3\n"
    )
    assert (tmp_path / "context.png").read_bytes().startswith(b"\x89PNG")
    assert curves(tmp_path) == {"context/loss": [(0, 3.0), (1, 2.5), (4, 2.0)]}
    assert {path.name for path in tmp_path.iterdir() if not path.name.startswith("events.")} == set(names)
