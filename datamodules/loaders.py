"""Windows as batches of tensors, straight from the memory map."""

import time
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datamodules.token_files import Document, TokenFile
from datamodules.windows import TrainingOrder
from llp.scoring.metric import Score, ScoringBatch
from llp.scoring.windows import ScoringWindow, scoring_windows


@dataclass
class SampleCounter:
    """Training windows taken so far, over all ranks: the whole state of the training order."""

    samples: int = 0


class SampleLoader(ABC):
    """Batches of consecutive samples.

    It continues from `counter`, which a checkpoint keeps: a resumed run takes the very next sample. `seconds` is the
    time spent so far on making batches.

    Args:
        counter: Advanced with every batch.
        batch_size: B, samples of one rank.
        n_batches: Length of the loader.
        rank: Of this process; it takes the samples `rank`, `rank + world_size`, ...
        world_size: Number of processes.
    """

    def __init__(self, counter: SampleCounter, batch_size: int, n_batches: int, rank: int, world_size: int) -> None:
        self.counter, self.batch_size, self.n_batches = counter, batch_size, n_batches
        self.rank, self.world_size = rank, world_size
        self.seconds = 0.0

    @abstractmethod
    def batch(self, samples: range) -> tuple[Tensor, ...]:
        """The batch of these sample numbers, as the model's `training_step` takes it."""

    def __len__(self) -> int:
        return self.n_batches

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        for _ in range(self.n_batches):
            started = time.perf_counter()
            first = self.counter.samples
            self.counter.samples += (
                self.batch_size * self.world_size
            )  # before the yield: a checkpoint counts this batch
            samples = range(first + self.rank, self.counter.samples, self.world_size)
            batch = self.batch(samples)
            self.seconds += time.perf_counter() - started
            yield batch


class TrainingLoader(SampleLoader):
    """Batches of consecutive samples.

    Without burn-in, `(inputs, targets)`, (B, n) each. With b tokens of burn-in, inputs (B, b + n) and targets (B, n),
    those after the last n. Where a document begins less than b tokens before a window, the inputs begin with it, and go
    on behind the window to be equally long, which nothing in the window can see; a batch that has such a window also
    has the places of its targets in the inputs, (B, n).

    Args:
        tokens: The stream.
        document_starts: Where its documents begin, in ascending order.
        order: Where the window of each sample number starts.
        counter: Advanced with every batch.
        window_len: n.
        burn_in: b, tokens before a window that are read and have no loss.
        batch_size: B, windows of one rank.
        n_batches: Length of the loader.
        rank: Of this process; it takes the samples `rank`, `rank + world_size`, ...
        world_size: Number of processes.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        document_starts: Sequence[int],
        order: TrainingOrder,
        counter: SampleCounter,
        window_len: int,
        burn_in: int,
        batch_size: int,
        n_batches: int,
        rank: int,
        world_size: int,
    ) -> None:
        super().__init__(counter, batch_size, n_batches, rank, world_size)
        self.tokens, self.document_starts, self.order = tokens, document_starts, order
        self.window_len, self.burn_in = window_len, burn_in

    def batch(self, samples: range) -> tuple[Tensor, ...]:
        starts = [self.order.start(sample) for sample in samples]
        n_before = [self._n_before(start) for start in starts]
        windows = [self._window(start - before) for start, before in zip(starts, n_before, strict=True)]
        rows = torch.from_numpy(np.stack(windows))  # (B, b + n + 1)
        inputs, following = rows[:, :-1], rows[:, 1:]
        if min(n_before) == self.burn_in:
            return inputs, following[:, self.burn_in :]
        places = torch.tensor(n_before)[:, None] + torch.arange(self.window_len)  # (B, n)
        return inputs, following.gather(1, places), places

    def _n_before(self, start: int) -> int:
        """How many tokens before `start` are read: the burn-in, but none of the document before."""
        if self.burn_in == 0:
            return 0
        document = self.document_starts[bisect_right(self.document_starts, start) - 1]
        return min(self.burn_in, start - document)

    def _window(self, start: int) -> np.ndarray:
        stop = start + self.burn_in + self.window_len + 1
        tokens = self.tokens[start:stop]
        if stop > len(self.tokens):  # the stream is a circle
            tokens = np.concatenate((tokens, self.tokens[: stop - len(self.tokens)]))
        return tokens.astype(np.int64)


class ScoringLoader:
    """A split's scoring windows, and what is known about their text.

    Args:
        file: The split's tokens.
        batches: Windows of one length each.
        split: Its name.
        protocol: How it is scored.
        unigram_nats: Computes the unigram baseline of a split; called only where a report wants it.
    """

    def __init__(
        self,
        file: TokenFile,
        batches: list[list[ScoringWindow]],
        split: str,
        protocol: dict[str, Any],
        unigram_nats: Callable[[str], list[float]],
    ) -> None:
        self.file, self.batches, self.split, self.protocol = file, batches, split, protocol
        self._unigram_nats = unigram_nats

    @property
    def window_shapes(self) -> Counter[tuple[int, int, bool]]:
        """How often a window has this length, scores so many positions and is its document's first; all ranks'."""
        window_len, stride = self.protocol["window_len"], self.protocol["stride"]
        return Counter(
            (window.stop - window.start, window.n_scored, window.stop == window.n_scored)
            for document in self.documents
            for window in scoring_windows(0, document.tokens, window_len, stride)
        )

    @property
    def documents(self) -> list[Document]:
        return self.file.documents

    def score(self) -> Score:
        """What sums up the losses of the windows."""
        return Score(self.documents, self.protocol["official_words"])

    def unigram_nats(self) -> list[float]:
        """Loss of each document under a unigram model of the training split, in nats."""
        return self._unigram_nats(self.split)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[ScoringBatch]:
        for batch in self.batches:
            n_scored = batch[0].n_scored
            rows = torch.from_numpy(np.stack([self._tokens(window) for window in batch]))  # (B, N + 1)
            yield ScoringBatch(
                rows[:, :-1], rows[:, rows.shape[1] - n_scored :], torch.tensor([window.document for window in batch])
            )

    def places(self, batch: int) -> list[int]:
        """Where the first scored token of each window of a batch stands among all scored tokens of the split."""
        before = self._tokens_before
        return [int(before[window.document]) + window.stop - window.n_scored for window in self.batches[batch]]

    def scored_tokens(self, places: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of the tokens that stand at these places among all scored ones: document, place in it, and the token."""
        documents = np.searchsorted(self._tokens_before, places, side="right") - 1
        within = places - self._tokens_before[documents]
        starts = np.array(self.file.starts)
        return documents, within, self.file.tokens[starts[documents] + 1 + within].astype(np.int64)

    @cached_property
    def _tokens_before(self) -> np.ndarray:
        """How many scored tokens the documents before each one have; at the end, how many there are."""
        return np.cumsum([0, *(document.tokens for document in self.documents)])

    def _tokens(self, window: ScoringWindow) -> np.ndarray:
        origin = self.documents[window.document].start
        return self.file.tokens[origin + window.start : origin + window.stop + 1].astype(np.int64)
