"""Examples of a task, drawn when they are needed, as batches of tensors."""

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from datamodules.loaders import SampleCounter, SampleLoader
from datamodules.windows import ScoringWindow
from llp.scoring.label_metric import LabelBatch, LabelScore


class Example(NamedTuple):
    """A window and what has to be known in it: the label at a place is the token at its source.

    `tokens` is (N,), all int64; `places` and `sources` (K,) are positions. A model predicts the label from the tokens
    up to the place, itself included. The label's distance is that of the place that follows from the source:
    `places + 1 - sources`.
    """

    tokens: np.ndarray
    places: np.ndarray
    sources: np.ndarray


class Examples(NamedTuple):
    """Several examples with equally many labels: tokens (B, N), places, labels and distances (B, K) each."""

    tokens: Tensor
    places: Tensor
    labels: Tensor
    distances: Tensor


def stacked(examples: Sequence[Example]) -> Examples:
    """The examples as tensors."""
    tokens, places, sources = (torch.from_numpy(np.stack(parts)) for parts in zip(*examples, strict=True))
    return Examples(tokens, places, tokens.gather(1, sources), places + 1 - sources)


class ExampleLoader(SampleLoader):
    """Training batches `(inputs, labels, places)` of fresh examples, (B, N), (B, K) and (B, K).

    Args:
        example: The example of a sample number.
        counter: Advanced with every batch.
        batch_size: B, examples of one rank.
        n_batches: Length of the loader.
        rank: Of this process; it takes the samples `rank`, `rank + world_size`, ...
        world_size: Number of processes.
    """

    def __init__(
        self,
        example: Callable[[int], Example],
        counter: SampleCounter,
        batch_size: int,
        n_batches: int,
        rank: int,
        world_size: int,
    ) -> None:
        super().__init__(counter, batch_size, n_batches, rank, world_size)
        self.example = example

    def batch(self, samples: range) -> tuple[Tensor, ...]:
        examples = stacked([self.example(sample) for sample in samples])
        return examples.tokens, examples.labels, examples.places


class ExampleScoringLoader:
    """A split's examples, each a window of its own, and what is known about them.

    Args:
        example: The example of a number.
        batches: Windows, each of which is the example of its `document` number, scored at `n_scored` labels.
        split: Its name.
        protocol: How it is scored.
        n_examples: Examples of the whole split, on all ranks.
    """

    def __init__(
        self,
        example: Callable[[int], Example],
        batches: list[list[ScoringWindow]],
        split: str,
        protocol: dict[str, Any],
        n_examples: int,
    ) -> None:
        self.example, self.batches, self.split, self.protocol = example, batches, split, protocol
        self.n_examples = n_examples

    @property
    def window_shapes(self) -> Counter[tuple[int, int, bool]]:
        """How often a window has this length, scores so many positions and is its document's first; all ranks'."""
        return Counter({(self.protocol["window_len"], self.protocol["labels_per_window"], True): self.n_examples})

    def score(self) -> LabelScore:
        """What sums up the predictions of the labels."""
        return LabelScore(self.protocol["window_len"], self.n_examples * self.protocol["labels_per_window"])

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[LabelBatch]:
        for batch in self.batches:
            n_scored = batch[0].n_scored  # 0 where a rank has no example left
            tokens, *scored = stacked([self.example(window.document) for window in batch])
            yield LabelBatch(tokens, *(part[:, :n_scored] for part in scored))
