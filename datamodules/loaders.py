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
"""A training batch, in the form that the model's `training_step` takes."""


@dataclass
class TrainingProgress:
    """What a run has trained on so far: the whole state of the training order.

    Attributes:
        samples: Number of training windows taken, over all ranks.
        batches: Number of batches taken by this process; None if the run was resumed from a checkpoint without it.
        fingerprints: SHA-256 digests of this process's batches. `training_windows` covers all of them, and
            `first_<k>_batches` the first k = 1, 2, 4, 8, ..., so that runs of different lengths can be compared over
            the part that they share.
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
    """Batches of consecutive samples. A resumed run continues with the next sample.

    `seconds` is the time spent so far on making batches.

    Args:
        make_batch: Returns the batch of the given sample numbers.
        progress: Updated with every batch, and saved in checkpoints.
        batch_size: B, the number of samples per batch and rank.
        n_batches: Length of the loader. Lightning prefetches no batch from a loader that has a length.
        rank: Rank of this process, which takes the samples `rank`, `rank + world_size`, ...
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
            self.progress.samples = stop  # before the yield, so that a checkpoint counts this batch
            self.progress.add(batch)
            self.seconds += time.perf_counter() - started
            yield batch


class TrainingOrder:
    """The order of training windows, a pure function of the seed and the number of the sample.

    An epoch has `n_tokens // stride` windows, each of which occurs once. Their starts are an offset plus multiples of
    the stride, in random order. Offset and order are drawn from the seed and the number of the epoch.

    Args:
        n_tokens: Length of the stream, at least `stride`.
        stride: Distance in tokens between the starts of neighbouring windows.
        seed: Seed of the order.
        is_circle: Whether windows wrap around the end of the stream. If so, every position is equally likely to start a
            window. Otherwise an epoch leaves out `n_tokens % stride` tokens, divided at random between the beginning
            and the end of the stream.
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
        """The position in the stream at which the window of a sample starts. Samples are numbered over all ranks."""
        epoch, number = divmod(sample, self.windows_per_epoch)
        offset, permutation = self._epoch(epoch)
        return (offset + int(permutation[number]) * self.stride) % self.n_tokens


class TextWindows:
    """Cuts batches of training windows from a stream of tokens.

    Without burn-in a batch is `(inputs, targets)`, (B, n) each. With b tokens of burn-in, inputs are (B, b + n), and
    targets (B, n) are the tokens after the last n inputs. If a document begins fewer than b tokens before a window, the
    inputs begin with the document. They are then extended beyond the window to the same length; no position of the
    window sees these tokens. A batch with such a window also contains the positions of its targets in the inputs,
    (B, n).

    Args:
        file: The stream and its documents.
        order: Determines where the window of each sample starts.
        window_len: n, the number of positions in a window.
        burn_in: b, the number of tokens before a window that are read without a loss.
    """

    def __init__(self, file: TokenFile, order: TrainingOrder, window_len: int, burn_in: int) -> None:
        self.file, self.order, self.window_len, self.burn_in = file, order, window_len, burn_in

    def __call__(self, samples: Iterable[int]) -> Batch:
        """The batch of the samples with these numbers."""
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
        """Number of tokens read before `start`: the burn-in, but nothing from before the document."""
        if self.burn_in == 0:
            return 0
        return min(self.burn_in, start - self.file.document_at(start).start)

    def _tokens(self, start: int) -> np.ndarray:
        stream, stop = self.file.tokens, start + self.burn_in + self.window_len + 1
        tokens = stream[start:stop]
        if stop > len(stream):  # wrap around
            tokens = np.concatenate((tokens, stream[: stop - len(stream)]))
        return tokens.astype(np.int64)


def share_of_rank(batches: list[list[ScoringWindow]], rank: int, world_size: int) -> list[list[ScoringWindow]]:
    """The batches of a rank, dealt out round robin. A missing one is replaced by a window that scores nothing.

    So all ranks have the same number of batches.
    """
    share = batches[rank::world_size]
    if len(share) * world_size < len(batches) + (-len(batches) % world_size):
        share = [*share, [batches[0][0]._replace(n_scored=0)]]
    return share


class ScoringLoader:
    """The scoring windows of a split, with its documents and the protocol by which it is scored.

    Args:
        file: The tokens of the split.
        batches: Batches of windows; the windows of a batch have equal lengths.
        split: Name of the split.
        protocol: How the split is scored.
        unigram_nats: Computes the unigram baseline of a split. It is only called if a report needs it.
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
        """For each window of a batch, the index of its first scored token among all scored tokens of the split."""
        before = self._tokens_before
        return [int(before[window.document]) + window.stop - window.n_scored for window in self.batches[batch]]

    def scored_tokens(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Document, position in the document and id of the scored tokens with these indices, (n,) each."""
        documents = np.searchsorted(self._tokens_before, positions, side="right") - 1
        within = positions - self._tokens_before[documents]
        starts = np.array(self.file.starts)
        return documents, within, self.file.tokens[starts[documents] + 1 + within].astype(np.int64)

    @cached_property
    def _tokens_before(self) -> np.ndarray:
        """Number of scored tokens before each document, and at the end the total."""
        return np.cumsum([0, *(document.tokens for document in self.documents)])

    def _tokens(self, window: ScoringWindow) -> np.ndarray:
        origin = self.documents[window.document].start
        return self.file.tokens[origin + window.start : origin + window.stop + 1].astype(np.int64)
