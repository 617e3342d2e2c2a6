"""How far back a model really reads: the loss of the same tokens with more and more context before them."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from llp.errors import require
from llp.run_folder import whole_file


class ContextLoss(NamedTuple):
    """Mean loss in nats of the same `targets` tokens, with `context` tokens before each of the `blocks` they lie in.

    `standard_error` is that of the loss, estimated from the spread of the blocks' means; nan for a single block. All
    points of a curve share the same blocks, so that the difference of two is more certain than either; in a short text,
    where blocks overlap, all are less certain.
    """

    context: int
    loss: float
    standard_error: float
    perplexity: float
    targets: int
    blocks: int


def context_lengths(longest: int) -> list[int]:
    """0, all powers of two below `longest`, and `longest`."""
    return [0, *(2**k for k in range(longest.bit_length()) if 2**k < longest), longest]


@torch.inference_mode()
def loss_by_context(
    model: Any,
    data: Any,
    max_context: int | None = None,
    split: Literal["validation", "test"] = "validation",
    n_blocks: int = 256,
    block_len: int | None = None,
) -> list[ContextLoss]:
    """Score the same tokens with more and more context, which shows how far back a model really reads.

    Args:
        model: A `LanguageModel` in evaluation mode.
        data: Its data module, after `setup`.
        max_context: The longest context in tokens; None: as much as a scoring window has before a block.
        split: The split whose tokens are scored.
        n_blocks: How many blocks of tokens to score, spread evenly over the places where there is room.
        block_len: Tokens per block, which are scored together: at most the stride of scoring windows. None: 32, or the
            stride if that is less.

    Raises:
        SettingError: If a value can't be used, or no document is long enough.
    """
    require(n_blocks >= 1, "n_blocks", n_blocks, "set it to 1 or more")
    window_len, stride = model.scoring_window(data.window_len, data.scoring_window_len, data.scoring_stride)
    block_len = min(32, stride) if block_len is None else block_len
    remedy = f"set it to 1 .. {stride}, the stride of scoring windows"
    require(1 <= block_len <= stride, "block_len", block_len, remedy)
    longest = window_len - block_len if max_context is None else max_context
    require(longest >= 1, "max_context", longest, "set it to 1 or more")
    file = data.checked_file(split)
    starts = _block_starts(file.documents, longest, block_len, n_blocks)
    batch_size = max(1, data.batch_size * data.window_len // (longest + block_len))
    curve = []
    for context in context_lengths(longest):
        means: list[float] = []  # of each block
        for first in range(0, len(starts), batch_size):
            rows = np.stack([file.tokens[s - context : s + block_len + 1] for s in starts[first : first + batch_size]])
            window = torch.from_numpy(rows.astype(np.int64)).to(model.device)  # (B, context + block_len + 1)
            means += model.decoder(window[:, :-1], window[:, -block_len:]).each.double().mean(dim=1).tolist()
        loss, n = math.fsum(means) / len(means), len(means)
        error = float(np.std(means, ddof=1)) / math.sqrt(n) if n > 1 else math.nan
        curve.append(ContextLoss(context, loss, error, math.exp(loss), n * block_len, n))
    return curve


def _block_starts(documents: Sequence[Any], longest: int, block_len: int, n_blocks: int) -> list[int]:
    """Where in the stream each block's first input is; the block and its longest context lie in one document."""
    rooms = [max(0, document.tokens - longest - block_len + 1) for document in documents]
    remedy = "no document has that many tokens before a block; set it lower"
    require(sum(rooms) > 0, "max_context", longest, remedy)
    ends = np.cumsum(rooms)
    places = np.unique(np.linspace(0, ends[-1] - 1, n_blocks).astype(np.int64))
    numbers = np.searchsorted(ends, places, side="right")
    return [
        documents[number].start + longest + place - (ends[number] - rooms[number])
        for number, place in zip(numbers, places, strict=True)
    ]


def draw(curve: Sequence[ContextLoss], title: str) -> Any:
    """Plot the loss, with its standard error, against the context."""
    from matplotlib.figure import Figure  # takes a second, and only this needs it

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    contexts, losses, errors = ([point[column] for point in curve] for column in range(3))
    n = curve[0].blocks
    label = "one block" if n == 1 else f"mean of {n:,} blocks ± its standard error"
    axes.errorbar(contexts, losses, errors, marker="o", markersize=4, capsize=3, label=label)
    axes.set_xscale("symlog", base=2, linthresh=1)
    axes.set(title=title, xlabel="context before the scored tokens (tokens)", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def write(curve: Sequence[ContextLoss], folder: Path, title: str) -> list[Path]:
    """Write `context.csv` and `context.png` into the run's folder, and the curve into its TensorBoard."""
    from torch.utils.tensorboard import SummaryWriter

    table, picture = folder / "context.csv", folder / "context.png"
    with whole_file(table, keeps_older=False) as temporary, temporary.open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(ContextLoss._fields)
        writer.writerows(curve)
    figure = draw(curve, title)
    with whole_file(picture, keeps_older=False) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
    with SummaryWriter(str(folder)) as board:
        for point in curve:
            board.add_scalar("context/loss", point.loss, point.context)
        board.add_figure("context", figure)
    return [table, picture]
