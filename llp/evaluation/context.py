"""How far back a model really reads: the loss of the same tokens with more and more context before them."""

import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from llp.atomic_files import whole_file
from llp.errors import require
from llp.evaluation.recall import distance_bins, recall_distances


class ContextLoss(NamedTuple):
    """Mean loss in nats of the same `targets` tokens, with `context` tokens before each of the `blocks` they lie in.

    `standard_error` is that of the loss, estimated from the spread of the blocks' means; nan for a single block. All
    points of a curve share the same blocks, so that the difference of two is more certain than either; in a short text,
    where blocks overlap, all are less certain.

    `recall_loss` is the mean over the `recall_targets` of them that are recall tokens with the longest context of the
    curve (see `recall_distances`), `other_loss` that over the others: the same tokens for each length of context. nan
    where there are none.
    """

    context: int
    loss: float
    standard_error: float
    perplexity: float
    targets: int
    blocks: int
    recall_loss: float
    recall_targets: int
    other_loss: float


class RecallLoss(NamedTuple):
    """Mean loss in nats of those recall tokens that the longest context has `first` to `last` tokens before them.

    They have `context` tokens before each of the blocks they lie in, and so some more before themselves.
    """

    context: int
    first: int
    last: int
    targets: int
    loss: float


class ContextCurve(NamedTuple):
    """The loss with growing context: of all tokens, and of recall tokens by distance."""

    points: list[ContextLoss]
    recall: list[RecallLoss]


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
) -> ContextCurve:
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
    window_len, stride = model.geometry.scoring_window(data.window_len, data.scoring_window_len, data.scoring_stride)
    block_len = min(32, stride) if block_len is None else block_len
    remedy = f"set it to 1 .. {stride}, the stride of scoring windows"
    require(1 <= block_len <= stride, "block_len", block_len, remedy)
    longest = window_len - block_len if max_context is None else max_context
    require(longest >= 1, "max_context", longest, "set it to 1 or more")
    file = data.checked_file(split)
    starts = _block_starts(file.documents, longest, block_len, n_blocks)
    batch_size = max(1, data.batch_size * data.window_len // (longest + block_len))
    distances = np.stack([_distances(file.tokens[s - longest : s + block_len + 1], block_len) for s in starts])
    curve = ContextCurve([], [])
    for context in context_lengths(longest):
        batches = []
        for first in range(0, len(starts), batch_size):
            rows = np.stack([file.tokens[s - context : s + block_len + 1] for s in starts[first : first + batch_size]])
            window = torch.from_numpy(rows.astype(np.int64)).to(model.device)  # (B, context + block_len + 1)
            batches.append(model.decoder(window[:, :-1], window[:, -block_len:]).each.double().cpu().numpy())
        nats = np.concatenate(batches)  # (blocks, block_len), as `distances`
        curve.points.append(_point(context, nats, distances > 0))
        curve.recall.extend(_by_distance(context, nats, distances))
    return curve


def _distances(tokens: np.ndarray, block_len: int) -> np.ndarray:
    """How far before each target of a block its bigram stood last in a window that ends with the block; 0: nowhere."""
    return recall_distances(tokens, np.zeros(len(tokens) - 1, np.int64))[-block_len:]


def _point(context: int, nats: np.ndarray, is_recall: np.ndarray) -> ContextLoss:
    """The losses of all targets, (blocks, block_len), as a point of the curve."""
    n = len(nats)
    means = nats.mean(axis=1)
    loss = math.fsum(means) / n
    error = float(np.std(means, ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    recall, other = nats[is_recall], nats[~is_recall]
    return ContextLoss(context, loss, error, math.exp(loss), nats.size, n, _mean(recall), len(recall), _mean(other))


def _by_distance(context: int, nats: np.ndarray, distances: np.ndarray) -> Iterator[RecallLoss]:
    """The losses of the recall tokens at each distance; both arrays are (blocks, block_len)."""
    for first, last in distance_bins(int(distances.max())):
        inside = nats[(first <= distances) & (distances <= last)]
        if len(inside):
            yield RecallLoss(context, first, last, len(inside), _mean(inside))


def _mean(nats: np.ndarray) -> float:
    return math.fsum(nats) / len(nats) if len(nats) else math.nan


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


def draw(curve: ContextCurve, title: str) -> Any:
    """Plot the loss, with its standard error, against the context; beside it that of recall tokens by distance."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure  # takes a second, and only this needs it

    figure = Figure(figsize=(11, 4), layout="constrained")
    figure.suptitle(title)
    loss, recall = figure.subplots(1, 2)
    contexts, losses, errors = ([point[column] for point in curve.points] for column in range(3))
    n = curve.points[0].blocks
    label = "one block" if n == 1 else f"mean of {n:,} blocks ± its standard error"
    loss.errorbar(contexts, losses, errors, marker="o", markersize=4, capsize=3, label=label)
    for name, means in (
        ("recall tokens", [point.recall_loss for point in curve.points]),
        ("other tokens", [point.other_loss for point in curve.points]),
    ):
        loss.plot(contexts, means, marker="o", markersize=3, linewidth=1, label=name)
    bins = list(dict.fromkeys((entry.first, entry.last) for entry in curve.recall))
    for number, (first, last) in enumerate(bins):
        means = [entry.loss for entry in curve.recall if entry.first == first]
        colour = colormaps["viridis"](number / len(bins))
        label = f"{first:,} back" if first == last else f"{first:,} .. {last:,} back"
        recall.plot(contexts, means, marker="o", markersize=3, color=colour, label=label)
    for axes in (loss, recall):
        axes.set_xscale("symlog", base=2, linthresh=1)
        axes.set(xlabel="context before the scored tokens (tokens)", ylabel="loss (nats per token)")
        axes.grid(alpha=0.3)
    loss.legend()
    if bins:
        recall.legend(title="recall tokens", fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def write(curve: ContextCurve, folder: Path, title: str) -> list[Path]:
    """Write the curve into the run's folder, as tables, a picture and into its TensorBoard.

    The files are `context.csv`, `context_recall.csv` and `context.png`.
    """
    from torch.utils.tensorboard import SummaryWriter

    table, recall_table, picture = (folder / f"context{end}" for end in (".csv", "_recall.csv", ".png"))
    for path, fields, rows in (
        (table, ContextLoss._fields, curve.points),
        (recall_table, RecallLoss._fields, curve.recall),
    ):
        with whole_file(path, keeps_older=False) as temporary, temporary.open("w", newline="") as stream:
            csv.writer(stream, lineterminator="\n").writerows([fields, *rows])
    figure = draw(curve, title)
    with whole_file(picture, keeps_older=False) as temporary:
        figure.savefig(temporary, format="png", dpi=150)
    with SummaryWriter(str(folder)) as board:
        for point in curve.points:
            board.add_scalar("context/loss", point.loss, point.context)
        board.add_figure("context", figure)
    return [table, recall_table, picture]
