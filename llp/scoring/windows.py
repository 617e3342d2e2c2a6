"""The windows that score a text: arithmetic on positions, without tokens."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

JOINED = 8
"""Largest number of windows that are joined to the one before them.

With windows of two strides, scoring 9 strides then takes the computation of 10 strides instead of 18.
"""


class ScoringWindow(NamedTuple):
    """Inputs `start .. stop - 1` of a document; the last `n_scored` of them are scored."""

    document: int
    start: int
    stop: int
    n_scored: int


class WindowShape(NamedTuple):
    """What the context of a window's tokens depends on."""

    length: int
    n_scored: int
    is_first: bool
    """Whether it is the first of its document."""


def scoring_windows(document: int, n_tokens: int, window_len: int, stride: int) -> Iterator[ScoringWindow]:
    """Windows that score each of a document's `n_tokens` positions exactly once.

    Window k scores the positions from `k * stride` up to those of the next window, with as many positions before them
    as fit; a document's first windows are shorter.
    """
    for first in range(0, n_tokens, stride):
        stop = min(first + stride, n_tokens)
        yield ScoringWindow(document, window_start(first, window_len, stride), stop, stop - first)


def window_start(position: int, window_len: int, stride: int) -> int:
    """The start of the window that scores a position."""
    return max(0, window_stop(position, stride) - window_len)


def window_stop(position: int, stride: int) -> int:
    """Where the window that scores a position stops, if the document doesn't end before."""
    return (position // stride + 1) * stride


def scoring_batches(n_tokens: list[int], window_len: int, stride: int, batch_size: int) -> list[list[ScoringWindow]]:
    """Batches of windows over documents of the given lengths. The windows of a batch have equal lengths."""
    windows = [
        window for document, n in enumerate(n_tokens) for window in scoring_windows(document, n, window_len, stride)
    ]
    return _of_equal_shape(windows, lambda length: batch_size)


def in_one_pass(batches: list[list[ScoringWindow]], longest: int, n_positions: int) -> list[list[ScoringWindow]]:
    """Batches that score the same positions as these, with consecutive windows joined to longer ones.

    If the model reads no further back than the start of the first window, the scores stay the same, and each position
    is computed once instead of once per window that contains it.

    Args:
        batches: Batches of scoring windows.
        longest: Largest number of positions in a joined window, including those before the scored ones.
        n_positions: Largest number of positions in a batch. A longer window is a batch of its own.
    """
    joined: list[ScoringWindow] = []
    for window in sorted(window for batch in batches for window in batch):
        last = joined[-1] if joined else None
        follows = last is not None and (last.document, last.stop) == (window.document, window.stop - window.n_scored)
        if last is not None and follows and window.stop - last.start <= longest:
            joined[-1] = last._replace(stop=window.stop, n_scored=last.n_scored + window.n_scored)
        else:
            joined.append(window)
    return _of_equal_shape(joined, lambda length: max(1, n_positions // length))


def _of_equal_shape(windows: list[ScoringWindow], size: Callable[[int], int]) -> list[list[ScoringWindow]]:
    """Batches of windows with equal lengths and scored positions; `size` gives the batch size for a length."""
    groups: dict[tuple[int, int], list[ScoringWindow]] = {}
    for window in windows:
        groups.setdefault((window.stop - window.start, window.n_scored), []).append(window)
    return [
        group[first : first + size(length)]
        for (length, _), group in groups.items()
        for first in range(0, len(group), size(length))
    ]
