"""The loss over growing context, by hand: which tokens are scored, behind how many, and what is written of it."""

import math
import statistics
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from helpers.runs import curves
from llp.errors import SettingError
from llp.evaluation.context import (
    ContextLoss,
    _block_starts,
    loss_by_context,
    write,
)

# Documents of 10, 3 and 8 tokens, each behind its start token.
DOCUMENTS = [SimpleNamespace(start=start, tokens=tokens) for start, tokens in ((0, 10), (11, 3), (15, 8))]
TOKENS = np.arange(100, 124, dtype=np.uint8)


@pytest.mark.parametrize(
    ("longest", "n_blocks", "expected"),
    [
        # 4 tokens before the first input and 2 behind it in one document: 5 positions in the first, 3 in the last.
        (4, 8, [4, 5, 6, 7, 8, 19, 20, 21]),
        (4, 100, [4, 5, 6, 7, 8, 19, 20, 21]),  # none twice
        (4, 3, [4, 7, 21]),  # 0, 3.5 and 7 of 0 .. 7
        (4, 2, [4, 21]),
        (4, 1, [4]),
        (8, 9, [8]),
    ],
)
def test_blocks_stand_wherever_the_longest_context_and_the_block_have_room(longest, n_blocks, expected):
    assert _block_starts(DOCUMENTS, longest, 2, n_blocks) == expected


class Known:
    """A model whose loss is 0.001 times a token's id, and 1 for each token of context; it keeps what it was given."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.batches: list[tuple[torch.Tensor, torch.Tensor]] = []
        self.geometry = SimpleNamespace(scoring_window=lambda *asked: {(8, "length", "stride"): (9, 3)}[asked])
        self.decoder = SimpleNamespace(loss=self.loss)

    def loss(self, inputs, targets):
        self.batches.append((inputs, targets))
        return SimpleNamespace(each=inputs.shape[1] - targets.shape[1] + 0.001 * targets)


def data(batch_size=1):
    texts = {"validation": TOKENS, "test": TOKENS[::-1].copy()}
    return SimpleNamespace(
        window_len=8,
        scoring_window_len="length",
        scoring_stride="stride",
        batch_size=batch_size,
        checked_file=lambda split: SimpleNamespace(tokens=texts[split], documents=DOCUMENTS),
    )


def test_the_same_tokens_are_scored_behind_every_context():
    model = Known()
    curve = loss_by_context(model, data(), max_context=4, n_blocks=3, block_len=2)
    targets = [105, 106, 108, 109, 122, 123]  # behind the inputs 4, 7 and 21
    for point, context in zip(curve, [0, 1, 2, 4], strict=True):
        loss = context + 0.001 * sum(targets) / 6
        error = 0.001 * statistics.stdev([105.5, 108.5, 122.5]) / math.sqrt(3)  # of the means of three blocks
        assert point == pytest.approx((context, loss, error, math.exp(loss), 6, 3), rel=1e-4)
    assert [(inputs.tolist(), targets.tolist()) for inputs, targets in model.batches[-3:]] == [
        ([[100, 101, 102, 103, 104, 105]], [[105, 106]]),
        ([[103, 104, 105, 106, 107, 108]], [[108, 109]]),
        ([[117, 118, 119, 120, 121, 122]], [[122, 123]]),
    ]


def test_by_default_a_block_is_a_stride_and_the_context_what_its_window_has():
    curve = loss_by_context(Known(), data())  # 9 and 3: 6 tokens before a block of 3
    assert [point.context for point in curve] == [0, 1, 2, 4, 6]
    assert curve[0].targets == 3 * (2 + 0 + 0)  # positions: 10 - 6 - 3 + 1 in the first document, none elsewhere
    loss = loss_by_context(Known(), data(), n_blocks=1, split="test")[0].loss
    assert loss == pytest.approx(0.001 * (123 - 7 + 123 - 8 + 123 - 9) / 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_blocks": 0}, "n_blocks = 0"),
        ({"block_len": 0}, "block_len = 0: set it to 1 .. 3"),
        ({"block_len": 4}, "block_len = 4: set it to 1 .. 3"),
        ({"max_context": 0}, "max_context = 0"),
        ({"max_context": 9, "block_len": 2}, "max_context = 9: no document has that many tokens"),
    ],
)
def test_settings_that_can_not_be_used(settings, message):
    with pytest.raises(SettingError, match=message):
        loss_by_context(Known(), data(), **settings)
    loss_by_context(Known(), data(), n_blocks=1, block_len=1, max_context=1)  # the least


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
