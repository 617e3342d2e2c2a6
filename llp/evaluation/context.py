"""How far back a model really reads: the loss of the same tokens with more and more context before them."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch

from llp.atomic_files import whole_file
from llp.errors import require
from llp.scoring.metric import Document
from llp.training_module import TrainingModule

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from datamodules.text import TextDataModule


class ContextLoss(NamedTuple):
    """Mean loss in nats of the same `targets` tokens, with `context` tokens before each of the `blocks` they lie in.

    `standard_error` is that of the loss, estimated from the spread of the blocks' means; nan for a single block. All
    points of a curve share the same blocks, so that the difference of two is more certain than either. In a short text,
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
    model: TrainingModule,
    data: "TextDataModule",
    max_context: int | None = None,
    split: Literal["validation", "test"] = "validation",
    n_blocks: int = 256,
    block_len: int | None = None,
) -> list[ContextLoss]:
    """Score the same tokens with more and more context, which shows how far back a model really reads.

    Args:
        model: A `TrainingModule` in evaluation mode.
        data: Its data module, after `setup`.
        max_context: The longest context in tokens; by default as much as a scoring window or, if that is less, the
            longest document has before a block.
        split: The split whose tokens are scored.
        n_blocks: How many blocks of tokens to score, spread evenly over the positions where there is room.
        block_len: Tokens per block, which are scored together: at most the stride of scoring windows. By default 32, or
            the stride if that is less.

    Raises:
        SettingError: If a value can't be used, or no document is long enough.
    """
    require(n_blocks >= 1, "n_blocks", n_blocks, "set it to 1 or more")
    window_len, stride = model.geometry.scoring_window(data.window_len, data.scoring_window_len, data.scoring_stride)
    block_len = min(32, stride) if block_len is None else block_len
    remedy = f"set it to 1 .. {stride}, the stride of scoring windows"
    require(1 <= block_len <= stride, "block_len", block_len, remedy)
    file = data.checked_file(split)
    most = max(document.tokens for document in file.documents) - block_len
    require(most >= 1, "block_len", block_len, "no document is longer; set it lower")
    longest = min(window_len - block_len, most) if max_context is None else max_context
    remedy = f"set it to 1 or more, and to {most} at most, as many tokens as a document has before a block"
    require(1 <= longest <= most, "max_context", longest, remedy)
    starts = _block_starts(file.documents, longest, block_len, n_blocks)
    blocks = np.stack([file.tokens[s - longest : s + block_len + 1] for s in starts])  # (blocks, longest + block + 1)
    batch_size = max(1, data.batch_size * data.window_len // (longest + block_len))
    curve = []
    for context in context_lengths(longest):
        batches = []
        for first in range(0, len(blocks), batch_size):
            rows = blocks[first : first + batch_size, longest - context :].astype(np.int64)
            window = torch.from_numpy(rows).to(model.device)  # (B, context + block_len + 1)
            batches.append(model.decoder.loss(window[:, :-1], window[:, -block_len:]).each.double().cpu())
        curve.append(_point(context, torch.cat(batches).numpy()))
    return curve


def _point(context: int, nats: np.ndarray) -> ContextLoss:
    """The losses of all targets, (blocks, block_len), as a point of the curve."""
    n, means = len(nats), nats.mean(axis=1)
    loss = math.fsum(means) / n
    error = float(np.std(means, ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return ContextLoss(context, loss, error, math.exp(loss), nats.size, n)


def _block_starts(documents: Sequence[Document], longest: int, block_len: int, n_blocks: int) -> list[int]:
    """The position of each block's first input in the stream; a block and its longest context are in one document."""
    room = np.array([max(0, document.tokens - longest - block_len + 1) for document in documents])
    first = np.array([document.start for document in documents]) + longest
    possible = np.concatenate([np.arange(start, start + n) for start, n in zip(first, room, strict=True)])
    chosen = np.unique(np.linspace(0, len(possible) - 1, n_blocks).astype(np.int64))
    return [int(start) for start in possible[chosen]]


def plot(curve: Sequence[ContextLoss], title: str) -> "Figure":
    """Plot the loss, with its standard error, against the context."""
    from matplotlib.figure import Figure  # it takes a second to import

    points = pd.DataFrame(curve)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    n = curve[0].blocks
    label = "one block" if n == 1 else f"mean of {n:,} blocks ± its standard error"
    axes.errorbar(points.context, points.loss, points.standard_error, marker="o", markersize=4, capsize=3, label=label)
    axes.set_xscale("symlog", base=2, linthresh=1)
    axes.set(title=title, xlabel="context before the scored tokens (tokens)", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    axes.legend()
    return figure


def write(curve: Sequence[ContextLoss], folder: Path, title: str) -> list[Path]:
    """Write the curve into the run's folder: `context.csv`, `context.png` and in TensorBoard."""
    from torch.utils.tensorboard import SummaryWriter

    table, picture = folder / "context.csv", folder / "context.png"
    figure = plot(curve, title)
    with whole_file(table, keeps_older=False) as temporary:
        pd.DataFrame(curve).to_csv(temporary, index=False, na_rep="nan")
    with whole_file(picture, keeps_older=False) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
    with SummaryWriter(str(folder)) as board:
        for point in curve:
            board.add_scalar("context/loss", point.loss, point.context)
        board.add_figure("context", figure)
    return [table, picture]
