"""Where windows lie: the training order, and the windows that score a text. Arithmetic alone, no tokens."""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np


class TrainingOrder:
    """The order of training windows: a pure function of the seed and the number of the sample.

    The stream of tokens is a circle. An epoch has `n_tokens // stride` windows, which start at the epoch's own offset
    plus multiples of the stride, in an order drawn from the seed and the epoch: each window once per epoch.

    Args:
        n_tokens: Length of the stream, at least `stride`.
        stride: Tokens between the starts of neighbouring windows.
        seed: Seed of the order.
    """

    def __init__(self, n_tokens: int, stride: int, seed: int) -> None:
        self.n_tokens, self.stride, self.seed = n_tokens, stride, seed
        self.windows_per_epoch = n_tokens // stride
        self._epoch = lru_cache(maxsize=2)(self._draw)  # a batch may straddle two epochs

    def _draw(self, epoch: int) -> tuple[int, np.ndarray]:
        rng = np.random.default_rng([self.seed, epoch])
        return int(rng.integers(self.n_tokens)), rng.permutation(self.windows_per_epoch)

    def start(self, sample: int) -> int:
        """Where in the stream the window of a global sample number starts."""
        epoch, position = divmod(sample, self.windows_per_epoch)
        offset, permutation = self._epoch(epoch)
        return (offset + int(permutation[position]) * self.stride) % self.n_tokens


class ScoringWindow(NamedTuple):
    """Inputs `start .. stop - 1` of a document; the last `n_scored` of them are scored."""

    document: int
    start: int
    stop: int
    n_scored: int


def scoring_windows(document: int, n_tokens: int, window_len: int, stride: int) -> Iterator[ScoringWindow]:
    """Windows that score each of a document's `n_tokens` positions exactly once.

    Window k scores the positions from `k * stride` up to the next window's, with as much before them as fits: the
    first windows are just shorter.
    """
    for first in range(0, n_tokens, stride):
        stop = min(first + stride, n_tokens)
        yield ScoringWindow(document, max(0, first + stride - window_len), stop, stop - first)


def scoring_batches(n_tokens: list[int], window_len: int, stride: int, batch_size: int) -> list[list[ScoringWindow]]:
    """Batches of windows over documents of the given lengths. In a batch all have one length: nothing is padded."""
    groups: dict[tuple[int, int], list[ScoringWindow]] = {}
    for document, n in enumerate(n_tokens):
        for window in scoring_windows(document, n, window_len, stride):
            groups.setdefault((window.stop - window.start, window.n_scored), []).append(window)
    return [group[i : i + batch_size] for group in groups.values() for i in range(0, len(group), batch_size)]


def share_of_rank(batches: list[list[ScoringWindow]], rank: int, world_size: int) -> list[list[ScoringWindow]]:
    """A rank's batches, round robin, as many as every other rank's: the missing ones score nothing."""
    share = batches[rank::world_size]
    if len(share) * world_size < len(batches) + (-len(batches) % world_size):
        share = [*share, [batches[0][0]._replace(n_scored=0)]]
    return share
