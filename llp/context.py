"""How far back a model really reads: the loss of the same tokens with more and more context before them."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from llp.errors import require


class ContextLoss(NamedTuple):
    """Mean loss in nats of the same `targets` tokens, with `context` tokens before each block of them."""

    context: int
    loss: float
    perplexity: float
    targets: int


def context_lengths(longest: int) -> list[int]:
    """0, the powers of two below `longest`, and `longest`."""
    return [0, *(2**k for k in range(longest.bit_length()) if 2**k < longest), longest]


def loss_by_context(
    model: Any,
    tokens: np.ndarray,
    documents: Sequence[Any],
    longest: int,
    block_len: int,
    n_blocks: int,
    batch_size: int,
) -> list[ContextLoss]:
    """Score the same blocks of tokens with growing context.

    Args:
        model: A `LanguageModel` in evaluation mode.
        tokens: The split's tokens.
        documents: Its documents; a block and its longest context lie in one of them.
        longest: The longest context, in tokens before a block.
        block_len: Tokens of a block, which are scored together.
        n_blocks: How many blocks, spread evenly over the places where there is room.
        batch_size: Blocks that are scored at a time.

    Raises:
        SettingError: If no document is long enough.
    """
    rooms = [max(0, document.tokens - longest - block_len + 1) for document in documents]
    remedy = "no document has that many tokens before a block; set it lower"
    require(sum(rooms) > 0, "max_context", longest, remedy)
    ends = np.cumsum(rooms)
    places = np.unique(np.linspace(0, ends[-1] - 1, n_blocks).astype(np.int64))
    numbers = np.searchsorted(ends, places, side="right")
    starts = [
        documents[number].start + longest + place - (ends[number] - rooms[number])
        for number, place in zip(numbers, places, strict=True)
    ]  # where in the stream the first input of each block stands
    curve = []
    for context in context_lengths(longest):
        nats = 0.0
        for first in range(0, len(starts), batch_size):
            rows = np.stack([tokens[s - context : s + block_len + 1] for s in starts[first : first + batch_size]])
            window = torch.from_numpy(rows.astype(np.int64)).to(model.device)  # (B, context + block_len + 1)
            nats += model.decoder(window[:, :-1], window[:, -block_len:]).each.double().sum().item()
        loss = nats / (len(starts) * block_len)
        curve.append(ContextLoss(context, loss, math.exp(loss), len(starts) * block_len))
    return curve


def draw(curve: Sequence[ContextLoss], title: str) -> Any:
    """The loss over the context, as a figure."""
    from matplotlib.figure import Figure  # takes a second, and only this needs it

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([point.context for point in curve], [point.loss for point in curve], marker="o")
    axes.set_xscale("symlog", base=2, linthresh=1)
    axes.set(title=title, xlabel="context before the scored tokens (tokens)", ylabel="loss (nats per token)")
    axes.grid(alpha=0.3)
    return figure


def write(curve: Sequence[ContextLoss], folder: Path, title: str) -> list[Path]:
    """Write `context.csv` and `context.png` into the run's folder, and the curve into its TensorBoard."""
    from torch.utils.tensorboard import SummaryWriter

    table, picture = folder / "context.csv", folder / "context.png"
    with table.with_name(".context.csv").open("w", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(ContextLoss._fields)
        writer.writerows(curve)
    table.with_name(".context.csv").replace(table)
    figure = draw(curve, title)
    figure.savefig(picture.with_name(".context.png"), format="png", dpi=150)
    picture.with_name(".context.png").replace(picture)
    with SummaryWriter(str(folder)) as board:
        for point in curve:
            board.add_scalar("context/loss", point.loss, point.context)
        board.add_figure("context", figure)
    return [table, picture]
