"""Where windows lie: the training order, and a rank's share of those that score a text. Arithmetic alone, no tokens."""

from functools import lru_cache

import numpy as np

from llp.scoring.windows import ScoringWindow


class TrainingOrder:
    """The order of training windows: a pure function of the seed and the number of the sample.

    An epoch has `n_tokens // stride` windows, which start at the epoch's own offset plus multiples of the stride, in an
    order drawn from the seed and the epoch: each window once per epoch.

    Args:
        n_tokens: Length of the stream, at least `stride`.
        stride: Tokens between the starts of neighbouring windows.
        seed: Seed of the order.
        is_circle: Whether an epoch begins anywhere in the stream, whose end is followed by its beginning, so that the
            places where windows begin are drawn evenly. If not, it goes from the beginning to the end, and leaves out
            less than a stride, now at one of them and now at the other.
    """

    def __init__(self, n_tokens: int, stride: int, seed: int, is_circle: bool = True) -> None:
        self.n_tokens, self.stride, self.seed, self.is_circle = n_tokens, stride, seed, is_circle
        self.windows_per_epoch = n_tokens // stride
        self._epoch = lru_cache(maxsize=2)(self._draw)  # a batch may straddle two epochs

    def _draw(self, epoch: int) -> tuple[int, np.ndarray]:
        rng = np.random.default_rng([self.seed, epoch])
        n_offsets = self.n_tokens if self.is_circle else self.n_tokens % self.stride + 1
        return int(rng.integers(n_offsets)), rng.permutation(self.windows_per_epoch)

    def start(self, sample: int) -> int:
        """Where in the stream the window of a global sample number starts."""
        epoch, position = divmod(sample, self.windows_per_epoch)
        offset, permutation = self._epoch(epoch)
        return (offset + int(permutation[position]) * self.stride) % self.n_tokens


def limited(batches: list[list[ScoringWindow]], limit: int | float) -> list[list[ScoringWindow]]:
    """The batches that a limit leaves, the first ones: so many if it is an `int`, that share of them if a `float`."""
    return batches[: limit if isinstance(limit, int) else int(len(batches) * limit)]


def share_of_rank(batches: list[list[ScoringWindow]], rank: int, world_size: int) -> list[list[ScoringWindow]]:
    """A rank's batches, round robin, as many as every other rank's: the missing ones score nothing."""
    share = batches[rank::world_size]
    if len(share) * world_size < len(batches) + (-len(batches) % world_size):
        share = [*share, [batches[0][0]._replace(n_scored=0)]]
    return share
