"""What the tasks share, whose examples are drawn instead of read: fresh ones to train on, fixed ones to score."""

import hashlib
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from datamodules.base import LanguageDataModule
from datamodules.loaders import Batch, TrainingLoader, share_of_rank
from llp.decoder.geometry import Geometry
from llp.errors import SettingError, require
from llp.scoring.label_metric import LabelBatch, LabelProtocol, LabelScore
from llp.scoring.windows import ScoringWindow, WindowShape

_SPLITS = {"train": 0, "validation": 1, "test": 2}


class Example(NamedTuple):
    """A window and its labels: the label at a position is the token at its source.

    `tokens` is (N,), `positions` and `sources` are (K,), all int64. A model predicts the label from the tokens up to
    the position, itself included. The label's distance is that of the following position from the source:
    `positions + 1 - sources`.
    """

    tokens: np.ndarray
    positions: np.ndarray
    sources: np.ndarray


class Examples(NamedTuple):
    """Several examples with equally many labels: tokens (B, N), positions, labels and distances (B, K) each."""

    tokens: Tensor
    positions: Tensor
    labels: Tensor
    distances: Tensor


def stacked(examples: Sequence[Example]) -> Examples:
    """The examples as tensors."""
    tokens, positions, sources = (torch.from_numpy(np.stack(parts)) for parts in zip(*examples, strict=True))
    return Examples(tokens, positions, tokens.gather(1, sources), positions + 1 - sources)


class ExampleScoringLoader:
    """A split's examples, each a window of its own, and what is known about them.

    Args:
        example: The example of a number.
        batches: Windows, each of which is the example of its `document` number, scored at `n_scored` labels.
        split: Its name.
        protocol: How it is scored.
        n_examples: Examples of the whole split, on all ranks.
        context_lens: How many tokens each position predicts from, itself included: (N,).
    """

    def __init__(
        self,
        example: Callable[[int], Example],
        batches: list[list[ScoringWindow]],
        split: str,
        protocol: LabelProtocol,
        n_examples: int,
        context_lens: Tensor,
    ) -> None:
        self.example, self.batches, self.split, self.protocol = example, batches, split, protocol
        self.n_examples, self.context_lens = n_examples, context_lens

    @property
    def window_shapes(self) -> Counter[WindowShape]:
        """Number of windows of each shape, over all ranks."""
        shape = WindowShape(self.protocol["window_len"], self.protocol["labels_per_window"], True)
        return Counter({shape: self.n_examples})

    def score(self) -> LabelScore:
        """The metric that sums the predictions of the labels."""
        return LabelScore(self.protocol["window_len"], self.n_examples * self.protocol["labels_per_window"])

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[LabelBatch]:
        for batch in self.batches:
            n_scored = batch[0].n_scored  # 0 where a rank has no example left
            tokens, *scored = stacked([self.example(window.document) for window in batch])
            positions, labels, distances = (part[:, :n_scored] for part in scored)
            yield LabelBatch(tokens, positions, labels, distances, distances > self.context_lens[positions])


class SyntheticData(LanguageDataModule):
    """Windows that are drawn by a rule, with a loss at some of their positions only: the labels.

    An example is a function of the seed, the split and the example's number. So no training example comes twice, a
    resumed run continues with the very next one, and the ranks share one order. Validation and test are the first
    examples of two other streams, which don't depend on the seed: runs of all seeds are scored on the same examples.

    A task defines how an example is drawn (`draw`); it sets where its labels are and how likely a guess is right.

    Args:
        vocab_size: Number of tokens.
        window_len: N, the positions of a window, which is one example.
        label_len: All labels are among so many positions at the end of the window, for an architecture that has a loss
            only there; null: anywhere.
        batch_size: Training windows in a batch of one device.
        n_validation: Examples of the validation split.
        n_test: Examples of the test split.
        distance_bin: Width of the bins of distances in which accuracy is reported, such as the length of a segment;
            null: a sixteenth of the window.
        seed: Seed of the training examples. On the command line it is `seed_everything`.

    Raises:
        SettingError: If a value can't be used.
    """

    labels_per_window: int
    """K, the number of labels."""
    first_position: int
    """The first position that can have a label."""
    n_answers: int
    """Number of tokens that are equally likely to be a label, for a guess without reading the window."""
    n_candidates: int
    """Number of tokens at least that are equally likely to be a label after reading all but its source."""
    changeable_settings = frozenset({"batch_size", "n_validation", "n_test", "distance_bin"})

    def __init__(
        self,
        vocab_size: int,
        window_len: int = 128,
        label_len: int | None = None,
        batch_size: int = 32,
        n_validation: int = 500,
        n_test: int = 2000,
        distance_bin: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(window_len, batch_size, seed)
        self.save_hyperparameters()
        self.distance_bin = max(1, window_len // 16) if distance_bin is None else distance_bin
        for setting, value in (("n_validation", n_validation), ("n_test", n_test), ("distance_bin", self.distance_bin)):
            require(value >= 1, f"data.init_args.{setting}", value, "set it to 1 or more")
        self.vocab_size, self.label_len = vocab_size, label_len
        self.n_examples = {"validation": n_validation, "test": n_test}

    # The task

    @abstractmethod
    def draw(self, rng: np.random.Generator) -> Example:
        """An example."""

    def example(self, split: str, number: int) -> Example:
        """The example of a split with this number, counted from 0."""
        seed = self.seed if split == "train" else 0
        return self.draw(np.random.default_rng([seed, _SPLITS[split], number]))

    def check_geometry(self, geometry: Geometry) -> None:
        n_out = geometry.positions_out(self.window_len)
        remedy = (
            f"the model has a loss at the last {n_out} of {self.window_len} positions only, and there are labels from "
            f"position {self.first_position} on; set it to {n_out} or less"
        )
        is_at_end = self.first_position >= self.window_len - n_out
        require(is_at_end, "data.init_args.label_len", self.label_len, remedy)

    # Training

    def train_dataloader(self) -> TrainingLoader:
        """Batches of `(inputs, labels, positions)`, (B, N), (B, K) and (B, K), from where the run stands."""
        trainer, geometry = self._attached()
        self.check_geometry(geometry)
        remedy = "fresh examples never come to an end; set it to the number of optimizer steps"
        require(trainer.max_steps > 0, "trainer.max_steps", trainer.max_steps, remedy)
        return self._training_loader(self._batch, n_batches=0)

    def _batch(self, samples: range) -> Batch:
        examples = stacked([self.example("train", sample) for sample in samples])
        return examples.tokens, examples.labels, examples.positions

    def describe_samples(self, n_samples: int) -> list[str]:
        taken = self.progress.samples
        return [f"sample {sample:,} of {self.name}" for sample in range(taken - n_samples, taken)]

    # Scoring

    def val_dataloader(self) -> ExampleScoringLoader:
        """The examples for validation."""
        return self._scoring_loader("validation", "limit_val_batches")

    def test_dataloader(self) -> ExampleScoringLoader:
        """The examples for the test."""
        return self._scoring_loader("test", "limit_test_batches")

    def predict_dataloader(self) -> ExampleScoringLoader:
        """Always raise a `SettingError`, since a task has no text."""
        remedy = "it has no text, and `llp predict` writes the loss of each token of one; use `llp test`"
        raise SettingError("data", type(self).__name__, remedy)

    def _scoring_loader(self, split: str, limit: str) -> ExampleScoringLoader:
        trainer, geometry = self._attached()
        self.check_geometry(geometry)
        n_examples, n_labels = self.n_examples[split], self.labels_per_window
        windows = [ScoringWindow(number, 0, self.window_len, n_labels) for number in range(n_examples)]
        batches = [windows[first : first + self.batch_size] for first in range(0, n_examples, self.batch_size)]
        protocol: LabelProtocol = {
            "data_fingerprint": self.fingerprint(split),
            "tokenizer_fingerprint": None,
            "window_len": self.window_len,
            "stride": self.window_len,
            "labels_per_window": n_labels,
            "answers": self.n_answers,
            "candidates": self.n_candidates,
            "distance_bin": self.distance_bin,
        }
        share = share_of_rank(self._limited(batches, limit), trainer.global_rank, trainer.world_size)
        context_lens = geometry.context_lens(self.window_len)
        return ExampleScoringLoader(partial(self.example, split), share, split, protocol, n_examples, context_lens)

    def fingerprint(self, split: str) -> str:
        """SHA-256 of a scored split's examples."""
        digest = hashlib.sha256()
        for number in range(self.n_examples[split]):
            for part in self.example(split, number):
                digest.update(part.astype("<i8").tobytes())
        return digest.hexdigest()
