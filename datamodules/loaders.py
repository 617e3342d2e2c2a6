"""Windows as batches of tensors: the training order and its progress, and a rank's share of the scoring windows."""

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor

from datamodules.token_files import TokenFile
from llp.scoring.metric import Document, Score, ScoringBatch, TextProtocol
from llp.scoring.windows import ScoringWindow, WindowShape, scoring_windows

Batch = tuple[Tensor, ...]
"""A training batch, as the model's `training_step` takes it."""


@dataclass
class TrainingProgress:
    """What a run has trained on so far: the whole state of the training order.

    Attributes:
        samples: Training windows taken, over all ranks.
        batches: Batches taken by this process; None in a run resumed from a checkpoint that doesn't say.
        fingerprints: SHA-256 digests of this process's batches. `training_windows` covers all of them, and
            `first_<k>_batches` the first k = 1, 2, 4, 8, ..., so that runs of unequal length can be compared as far as
            both went.
    """

    samples: int = 0
    batches: int | None = 0
    fingerprints: dict[str, str] = field(default_factory=lambda: {"training_windows": ""})

    def add(self, batch: Iterable[Tensor]) -> None:
        """Count a batch and add it to the digests."""
        self.batches = (self.batches or 0) + 1
        digest = hashlib.sha256(self.fingerprints["training_windows"].encode())
        for tensor in batch:
            digest.update(tensor.numpy().tobytes())
        self.fingerprints["training_windows"] = digest.hexdigest()
        if self.batches.bit_count() == 1:
            self.fingerprints[f"first_{self.batches}_batches"] = digest.hexdigest()


class TrainingLoader:
    """Batches of consecutive samples; a resumed run takes the very next sample.

    `seconds` is the time spent so far on making batches.

    Args:
        make_batch: The batch of these sample numbers.
        progress: Advanced with every batch; a checkpoint keeps it.
        batch_size: B, samples of one rank.
        n_batches: Length of the loader. Because it has one, Lightning fetches no batch ahead.
        rank: Of this process; it takes the samples `rank`, `rank + world_size`, ...
        world_size: Number of processes.
    """

    def __init__(
        self,
        make_batch: Callable[[range], Batch],
        progress: TrainingProgress,
        batch_size: int,
        n_batches: int,
        rank: int,
        world_size: int,
    ) -> None:
        self.make_batch, self.progress = make_batch, progress
        self.batch_size, self.n_batches = batch_size, n_batches
        self.rank, self.world_size = rank, world_size
        self.seconds = 0.0

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self) -> Iterator[Batch]:
        for _ in range(self.n_batches):
            started = time.perf_counter()
            first, stop = self.progress.samples, self.progress.samples + self.batch_size * self.world_size
            batch = self.make_batch(range(first + self.rank, stop, self.world_size))
            self.progress.samples = stop  # before the yield: a checkpoint counts this batch
            self.progress.add(batch)
            self.seconds += time.perf_counter() - started
            yield batch


class TrainingOrder:
    """The order of training windows: a pure function of the seed and the number of the sample.

    An epoch has `n_tokens // stride` windows. They start at the epoch's own offset plus multiples of the stride, in an
    order drawn from the seed and the epoch; each window comes once per epoch.

    Args:
        n_tokens: Length of the stream, at least `stride`.
        stride: Tokens between the starts of neighbouring windows.
        seed: Seed of the order.
        is_circle: Whether the stream's end is followed by its beginning. An epoch then begins anywhere, so that every
            position is equally likely to start a window. Otherwise an epoch runs from the beginning to the end and
            leaves out less than a stride, at a random mixture of both ends.
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
        epoch, number = divmod(sample, self.windows_per_epoch)
        offset, permutation = self._epoch(epoch)
        return (offset + int(permutation[number]) * self.stride) % self.n_tokens


class TextWindows:
    """Cuts batches of training windows out of a stream of tokens.

    Without burn-in a batch is `(inputs, targets)`, (B, n) each. With b tokens of burn-in, inputs are (B, b + n) and
    targets (B, n), the tokens after the last n. Where a document begins less than b tokens before a window, the inputs
    begin with the document and extend beyond the window to the same length, which nothing in the window can see. A
    batch with such a window also has the positions of its targets in the inputs, (B, n).

    Args:
        file: The stream and its documents.
        order: Where the window of each sample number starts.
        window_len: n.
        burn_in: b, tokens before a window that are read without a loss.
    """

    def __init__(self, file: TokenFile, order: TrainingOrder, window_len: int, burn_in: int) -> None:
        self.file, self.order, self.window_len, self.burn_in = file, order, window_len, burn_in

    def __call__(self, samples: Iterable[int]) -> Batch:
        """The batch of these sample numbers."""
        starts = [self.order.start(sample) for sample in samples]
        n_before = [self._n_before(start) for start in starts]
        windows = [self._tokens(start - before) for start, before in zip(starts, n_before, strict=True)]
        rows = torch.from_numpy(np.stack(windows))  # (B, b + n + 1)
        inputs, following = rows[:, :-1], rows[:, 1:]
        if min(n_before) == self.burn_in:
            return inputs, following[:, self.burn_in :]
        positions = torch.tensor(n_before)[:, None] + torch.arange(self.window_len)  # (B, n)
        return inputs, following.gather(1, positions), positions

    def _n_before(self, start: int) -> int:
        """How many tokens before `start` are read: the burn-in, but none of the document before."""
        if self.burn_in == 0:
            return 0
        return min(self.burn_in, start - self.file.document_at(start).start)

    def _tokens(self, start: int) -> np.ndarray:
        stream, stop = self.file.tokens, start + self.burn_in + self.window_len + 1
        tokens = stream[start:stop]
        if stop > len(stream):  # the stream is a circle
            tokens = np.concatenate((tokens, stream[: stop - len(stream)]))
        return tokens.astype(np.int64)


def share_of_rank(batches: list[list[ScoringWindow]], rank: int, world_size: int) -> list[list[ScoringWindow]]:
    """A rank's batches, round robin, as many as every other rank's: a missing one is a window that scores nothing."""
    share = batches[rank::world_size]
    if len(share) * world_size < len(batches) + (-len(batches) % world_size):
        share = [*share, [batches[0][0]._replace(n_scored=0)]]
    return share


class ScoringLoader:
    """A split's scoring windows, and what is known about their text.

    Args:
        file: The split's tokens.
        batches: Windows of equal length in each batch.
        split: Its name.
        protocol: How it is scored.
        unigram_nats: Computes the unigram baseline of a split; called only where a report needs it.
    """

    def __init__(
        self,
        file: TokenFile,
        batches: list[list[ScoringWindow]],
        split: str,
        protocol: TextProtocol,
        unigram_nats: Callable[[str], list[float]],
    ) -> None:
        self.file, self.batches, self.split, self.protocol = file, batches, split, protocol
        self._unigram_nats = unigram_nats

    @property
    def window_shapes(self) -> Counter[WindowShape]:
        """Number of windows of each shape, over all ranks."""
        window_len, stride = self.protocol["window_len"], self.protocol["stride"]
        return Counter(
            WindowShape(window.stop - window.start, window.n_scored, window.stop == window.n_scored)
            for document in self.documents
            for window in scoring_windows(0, document.tokens, window_len, stride)
        )

    @property
    def documents(self) -> Sequence[Document]:
        return self.file.documents

    def score(self) -> Score:
        """The metric that sums the losses of the windows."""
        return Score(self.documents, self.protocol["official_words"])

    def unigram_nats(self) -> list[float]:
        """Loss in nats of each document under a unigram model of the training split."""
        return self._unigram_nats(self.split)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[ScoringBatch]:
        for batch in self.batches:
            rows = torch.from_numpy(np.stack([self._tokens(window) for window in batch]))  # (B, N + 1)
            targets = rows[:, rows.shape[1] - batch[0].n_scored :]
            yield ScoringBatch(rows[:, :-1], targets, torch.tensor([window.document for window in batch]))

    def positions(self, batch: int) -> list[int]:
        """Index of the first scored token of each window of a batch, among all scored tokens of the split."""
        before = self._tokens_before
        return [int(before[window.document]) + window.stop - window.n_scored for window in self.batches[batch]]

    def scored_tokens(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Document, position in the document and id of the scored tokens with these indices."""
        documents = np.searchsorted(self._tokens_before, positions, side="right") - 1
        within = positions - self._tokens_before[documents]
        starts = np.array(self.file.starts)
        return documents, within, self.file.tokens[starts[documents] + 1 + within].astype(np.int64)

    @cached_property
    def _tokens_before(self) -> np.ndarray:
        """How many scored tokens the documents before each one have; at the end, how many there are."""
        return np.cumsum([0, *(document.tokens for document in self.documents)])

    def _tokens(self, window: ScoringWindow) -> np.ndarray:
        origin = self.documents[window.document].start
        return self.file.tokens[origin + window.start : origin + window.stop + 1].astype(np.int64)
