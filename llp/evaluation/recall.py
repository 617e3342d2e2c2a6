"""Where the loss of a text comes from: by position in the scoring window, and on tokens that could be recalled."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from llp.evaluation.loaders import TextLoader

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_POSITION_BINS = 32


class Bin(TypedDict, total=False):
    """Number and total loss in nats of the tokens with a value from `first` to `last`, or of `segments`."""

    first: int
    last: int
    segments: int
    tokens: int
    nats: float


class LossSlices(TypedDict):
    """What `slices.json` holds; see `loss_slices`."""

    position: list[Bin]
    recall: list[Bin]
    other: Bin
    segment_len: int | None
    recall_by_segment: list[Bin] | None


def last_occurrences(tokens: np.ndarray) -> np.ndarray:
    """Where each bigram of a text last occurred before.

    Args:
        tokens: (N + 1,), the inputs at N positions, and the target of the last.

    Returns:
        (N,) int64: for each position the nearest one before it with the same input and the same target, or -1.
    """
    bigrams = tokens[:-1].astype(np.int64) << 32 | tokens[1:].astype(np.int64)
    order = np.argsort(bigrams, kind="stable")  # equal ones stay in the order of the text
    repeats = bigrams[order[1:]] == bigrams[order[:-1]]
    occurrences = np.full(len(bigrams), -1)
    occurrences[order[1:][repeats]] = order[:-1][repeats]
    return occurrences


def recall_distances(tokens: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The distance from each target back to where its bigram last occurred in the context of the prediction.

    The token that a document begins with is context like any other. Where it is a line's end, a text can repeat a
    bigram with it.

    Args:
        tokens: (N + 1,), the inputs at N positions, and the target of the last.
        starts: (N,), the first position of the context of each.

    Returns:
        (N,) int64, in tokens; 0 for a target that is no recall token.
    """
    occurrences, positions = last_occurrences(tokens), np.arange(len(starts))
    # Any occurrence in the context is nearer than all before it, so the nearest one of the whole text decides.
    return np.where(occurrences >= starts, positions - occurrences, 0)


def distance_bins(longest: int) -> list[tuple[int, int]]:
    """First and last distance of 1, 2, 3 .. 4, 5 .. 8 and so on, up to the one that holds `longest`."""
    lasts = [1 << k for k in range((longest - 1).bit_length() + 1)]
    return [(last // 2 + 1, last) for last in lasts]


class _Sums:
    """Number and total loss of the tokens with each value of 0 .. `largest`."""

    def __init__(self, largest: int) -> None:
        self.tokens = np.zeros(largest + 1, np.int64)
        self.nats = np.zeros(largest + 1)

    def add(self, values: np.ndarray, nats: np.ndarray) -> None:
        self.tokens += np.bincount(values, minlength=len(self.tokens))
        self.nats += np.bincount(values, nats, minlength=len(self.nats))

    def over(self, first: int, last: int) -> Bin:
        values = slice(first, last + 1)
        return {"tokens": int(self.tokens[values].sum()), "nats": float(self.nats[values].sum())}

    def bins(self, bounds: Iterable[tuple[int, int]]) -> list[Bin]:
        """A bin for each pair of bounds, without the empty ones."""
        found: list[Bin] = [{"first": first, "last": last, **self.over(first, last)} for first, last in bounds]
        return [one for one in found if one["tokens"]]


def loss_slices(losses: Path, loader: TextLoader, left_out: float, segment_len: int | None = None) -> LossSlices:
    """The loss of a split by position in the scoring window, and on recall tokens by distance; needs no model.

    - `position`: by how many tokens of its window a token was predicted from, however far the architecture reaches. 1
      is the window's first input alone. The bins have equal width, the least that gives 32 or fewer.
    - `recall`: a token is a recall token if it and the one before it are neighbours in its context already, which is
      the part of its window before it. Its distance is counted from the last such place: 1 for the third of three equal
      tokens. The bins end at powers of two. `other` are all other tokens.
    - `recall_by_segment`: how many whole segments the predicting position must look back to find that place. Segments
      are counted from the window's beginning; 0 is the position's own.

    Args:
        losses: File with a float32 for each token of the split, in the order of the text.
        loader: The scoring loader.
        left_out: The value of tokens that were not scored.
        segment_len: Length of a segment, for an architecture that has segments.
    """
    window_len, stride = loader.protocol["window_len"], loader.protocol["stride"]
    by_context, by_distance, by_segment = _Sums(window_len), _Sums(window_len), _Sums(window_len)
    with losses.open("rb") as file:
        for document in loader.documents:
            nats = np.frombuffer(file.read(4 * document.tokens), np.float32)
            tokens = loader.file.tokens[document.start : document.start + document.tokens + 1]
            positions = np.arange(document.tokens)
            starts = np.maximum(0, (positions // stride + 1) * stride - window_len)  # as `window_start`
            scored = nats != left_out
            distances, within = recall_distances(tokens, starts)[scored], (positions - starts)[scored]
            nats = nats[scored].astype(np.float64)
            by_context.add(within + 1, nats)
            by_distance.add(distances, nats)
            if segment_len is not None:
                sources = within - distances + 1  # where the token is an input
                recalled = distances > 0
                by_segment.add((within // segment_len - sources // segment_len)[recalled], nats[recalled])
    width = -(-window_len // _MOST_POSITION_BINS)
    firsts = range(1, window_len + 1, width)
    segments: list[Bin] = [{"segments": k, **by_segment.over(k, k)} for k in range(window_len)]
    return {
        "position": by_context.bins((first, min(first + width - 1, window_len)) for first in firsts),
        "recall": by_distance.bins(distance_bins(window_len)),
        "other": by_distance.over(0, 0),
        "segment_len": segment_len,
        "recall_by_segment": None if segment_len is None else [one for one in segments if one["tokens"]],
    }


def mean_loss(of: Bin) -> float:
    """Nats per token of a bin that has tokens."""
    return of["nats"] / of["tokens"]


def summary(slices: LossSlices) -> list[list[str]]:
    """A table of the loss of recall tokens and of the others."""
    nats = sum(one["nats"] for one in slices["recall"])
    recall: Bin = {"tokens": sum(one["tokens"] for one in slices["recall"]), "nats": nats}
    n_tokens = recall["tokens"] + slices["other"]["tokens"]
    table = [["", "tokens", "share", "loss"]]
    for name, one in (("recall tokens", recall), ("other tokens", slices["other"])):
        loss = f"{mean_loss(one):.4f}" if one["tokens"] else "-"
        table.append([name, f"{one['tokens']:,}", f"{one['tokens'] / n_tokens:.1%}", loss])
    return table


def plot(slices: LossSlices, title: str) -> "Figure":
    """Plot the mean loss by position in the scoring window, and that of recall tokens by distance."""
    from matplotlib.figure import Figure  # it takes a second to import

    figure = Figure(figsize=(11, 4), layout="constrained")
    figure.suptitle(title)
    by_position, by_distance = figure.subplots(1, 2)
    _plot(by_position, slices["position"], "all tokens")
    by_position.set(xlabel="tokens of the window before the scored one")
    _plot(by_distance, slices["recall"], "recall tokens")
    if slices["other"]["tokens"]:
        by_distance.axhline(mean_loss(slices["other"]), color="0.5", linestyle="--", label="other tokens")
    if slices["segment_len"] is not None:
        by_distance.axvline(slices["segment_len"], color="0.5", linestyle=":", label="length of a segment")
    by_distance.set_xscale("log", base=2)
    by_distance.set(xlabel="distance to where the bigram last occurred (tokens)")
    for axes in (by_position, by_distance):
        axes.set(ylabel="loss (nats per token)")
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def _plot(axes: "Axes", bins: Sequence[Bin], label: str) -> None:
    """Plot mean losses over the last value of each bin."""
    axes.plot([one["last"] for one in bins], [mean_loss(one) for one in bins], "o-", markersize=4, label=label)
