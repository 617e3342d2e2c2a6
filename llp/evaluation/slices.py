"""Where the loss of a text comes from: by position in the scoring window, and on tokens that can be recalled."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llp.evaluation.recall import distance_bins, recall_distances
from llp.scoring.windows import scoring_windows

TOKENS_IN_MEMORY = 1 << 19
MOST_POSITION_BINS = 32


class Sums:
    """Number and total loss in nats of the tokens with each value of 0 .. `largest`."""

    def __init__(self, largest: int) -> None:
        self.tokens = np.zeros(largest + 1, np.int64)
        self.nats = np.zeros(largest + 1)

    def add(self, values: np.ndarray, nats: np.ndarray) -> None:
        """Add tokens with these values and losses, (N,) each."""
        self.tokens += np.bincount(values, minlength=len(self.tokens))
        self.nats += np.bincount(values, nats, minlength=len(self.nats))

    def over(self, first: int, last: int) -> dict[str, Any]:
        """Tokens and nats over the values `first .. last`."""
        values = slice(first, last + 1)
        return {"tokens": int(self.tokens[values].sum()), "nats": float(self.nats[values].sum())}

    def bins(self, bounds: Sequence[tuple[int, int]]) -> list[dict[str, Any]]:
        """One entry per bin of values from `first` to `last` that has any tokens."""
        entries = [{"first": first, "last": last, **self.over(first, last)} for first, last in bounds]
        return [entry for entry in entries if entry["tokens"]]


class Slices:
    """The loss of a text by position in the scoring window, and on recall tokens by distance.

    `position`: by how many tokens a token was predicted from in its window; with 1 that is the window's first input
    alone. They count as the window begins, however far an architecture reaches. The bins are of equal width, the least
    with which there are 32 or fewer.

    `recall`: a token is a recall token if it and the one before it stand as neighbours in its context already, which is
    the part of its window before it. Its distance is that from where it stood there last: 1 for the third of three
    equal tokens. The bins end at powers of two. `other` are all tokens that are not recall tokens.

    `recall_by_segment`: how many whole segments the predicting position must look back to find the token where it stood
    last; segments are cut from the window's beginning. 0 is the position's own segment.

    Args:
        window_len: Inputs of a scoring window.
        segment_len: Length of a segment, for an architecture that has segments.
    """

    def __init__(self, window_len: int, segment_len: int | None = None) -> None:
        self.window_len, self.segment_len = window_len, segment_len
        self._contexts, self._distances = Sums(window_len), Sums(window_len)
        self._segments = Sums(window_len)

    def add(self, tokens: np.ndarray, starts: np.ndarray, nats: np.ndarray, is_scored: np.ndarray) -> None:
        """Add whole documents.

        Args:
            tokens: (N + 1,), the inputs at N positions and behind each its target.
            starts: (N,), the first position of the window that scores each.
            nats: (N,), the losses.
            is_scored: (N,), whether the position is scored; what the others have for a loss is of no account.
        """
        scored = np.flatnonzero(is_scored)
        nats = nats[scored].astype(np.float64)
        distances = recall_distances(tokens, starts)[scored]
        within = scored - starts[scored]  # the window
        self._contexts.add(within + 1, nats)
        self._distances.add(distances, nats)
        if self.segment_len is not None:
            sources = within - distances + 1  # where the token is an input
            segments = within // self.segment_len - sources // self.segment_len
            recalled = distances > 0
            self._segments.add(segments[recalled], nats[recalled])

    def content(self) -> dict[str, Any]:
        """What `slices.json` holds: in each slice the number of tokens and their total loss in nats."""
        width = -(-self.window_len // MOST_POSITION_BINS)
        firsts = range(1, self.window_len + 1, width)
        by_segment = [{"segments": k, **self._segments.over(k, k)} for k in range(self.window_len)]
        return {
            "position": self._contexts.bins([(first, min(first + width - 1, self.window_len)) for first in firsts]),
            "recall": self._distances.bins(distance_bins(self.window_len)),
            "other": self._distances.over(0, 0),
            "segment_len": self.segment_len,
            "recall_by_segment": None if self.segment_len is None else [row for row in by_segment if row["tokens"]],
        }


def slices_of(losses: Path, loader: Any, left_out: float, segment_len: int | None = None) -> dict[str, Any]:
    """The slices of a split that was scored, computed from its tokens and their losses; no model is needed.

    A few documents are in memory at a time.

    Args:
        losses: File with a float32 for each token of the split, in the order of the text.
        loader: The scoring loader, which knows text and windows.
        left_out: What the file has for a token that was not scored.
        segment_len: Length of a segment, for an architecture that has segments.
    """
    window_len, stride = loader.protocol["window_len"], loader.protocol["stride"]
    slices = Slices(window_len, segment_len)
    with losses.open("rb") as file:
        for documents in _groups(loader.documents):
            n_tokens = sum(document.tokens for document in documents)
            first = documents[0].start
            tokens = loader.file.tokens[first : first + len(documents) + n_tokens]
            has_target = np.ones(len(tokens), bool)
            has_target[[document.start + document.tokens - first for document in documents]] = False
            starts, nats = np.zeros(len(tokens), np.int64), np.full(len(tokens), left_out, np.float32)
            starts[has_target] = _window_starts(documents, window_len, stride) - first
            nats[has_target] = np.frombuffer(file.read(4 * n_tokens), np.float32)
            slices.add(tokens, starts[:-1], nats[:-1], nats[:-1] != left_out)
    return slices.content()


def _groups(documents: Sequence[Any]) -> Iterator[list[Any]]:
    """Neighbouring documents that have half a million tokens together, or a single longer one."""
    group: list[Any] = []
    n_tokens = 0
    for document in documents:
        if group and n_tokens + document.tokens > TOKENS_IN_MEMORY:
            yield group
            group, n_tokens = [], 0
        group.append(document)
        n_tokens += document.tokens
    yield group


def _window_starts(documents: Sequence[Any], window_len: int, stride: int) -> np.ndarray:
    """Where in the stream the window begins that scores each token of these documents, one after the other."""
    windows = [
        (document.start + window.start, window.n_scored)
        for document in documents
        for window in scoring_windows(0, document.tokens, window_len, stride)
    ]
    starts, n_scored = np.array(windows, np.int64).reshape(-1, 2).T
    return np.repeat(starts, n_scored)


def summary(slices: dict[str, Any]) -> list[list[str]]:
    """A table of the loss of recall tokens and of the others."""
    recall = {key: sum(entry[key] for entry in slices["recall"]) for key in ("tokens", "nats")}
    n_tokens = recall["tokens"] + slices["other"]["tokens"]
    table = [["", "tokens", "share", "loss"]]
    for name, entry in (("recall tokens", recall), ("other tokens", slices["other"])):
        loss = f"{mean_loss(entry):.4f}" if entry["tokens"] else "-"
        table.append([name, f"{entry['tokens']:,}", f"{entry['tokens'] / n_tokens:.1%}", loss])
    return table


def draw(slices: dict[str, Any], title: str) -> Any:
    """Plot the mean loss by position in the scoring window, and that of recall tokens by distance."""
    from matplotlib.figure import Figure  # takes a second, and only this needs it

    figure = Figure(figsize=(11, 4), layout="constrained")
    figure.suptitle(title)
    by_position, by_distance = figure.subplots(1, 2)
    _plot(by_position, slices["position"], "all tokens")
    by_position.set(xlabel="tokens of the window before the scored one", ylabel="loss (nats per token)")
    _plot(by_distance, slices["recall"], "recall tokens")
    if slices["other"]["tokens"]:
        by_distance.axhline(mean_loss(slices["other"]), color="0.5", linestyle="--", label="other tokens")
    if slices["segment_len"] is not None:
        by_distance.axvline(slices["segment_len"], color="0.5", linestyle=":", label="length of a segment")
    by_distance.set_xscale("log", base=2)
    by_distance.set(xlabel="distance from where the bigram stood last (tokens)", ylabel="loss (nats per token)")
    for axes in (by_position, by_distance):
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def _plot(axes: Any, bins: Sequence[dict[str, Any]], label: str) -> None:
    """Mean losses over the last value of each bin."""
    axes.plot([entry["last"] for entry in bins], [mean_loss(entry) for entry in bins], "o-", markersize=4, label=label)


def mean_loss(entry: dict[str, Any]) -> float:
    """Nats per token of a slice that has any tokens."""
    return float(entry["nats"] / entry["tokens"])
