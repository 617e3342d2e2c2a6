"""The places of the windows that score a text: pure arithmetic, without tokens."""

from collections.abc import Iterator
from typing import NamedTuple


class ScoringWindow(NamedTuple):
    """Inputs `start .. stop - 1` of a document; the last `n_scored` of them are scored."""

    document: int
    start: int
    stop: int
    n_scored: int


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
    return max(0, (position // stride + 1) * stride - window_len)
