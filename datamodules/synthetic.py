"""What the tasks share whose examples are drawn, not read: fresh ones to train on, fixed ones to score."""

import hashlib
from abc import abstractmethod
from functools import partial
from typing import Any

import numpy as np

from datamodules.examples import Example, ExampleLoader, ExampleScoringLoader
from datamodules.language_data import LanguageDataModule
from datamodules.windows import ScoringWindow, share_of_rank
from llp.errors import SettingError, require

_MOST_EXAMPLES = 1_000_000
_SPLITS = {"train": 0, "validation": 1, "test": 2}


class SyntheticData(LanguageDataModule):
    """Windows that are drawn by a rule, with a loss at some of their positions alone: the labels.

    An example is a function of the seed, the split and the example's number. So no training example comes twice, a
    resumed run continues with the very next one, and the ranks share out one order. Validation and test are the first
    so many examples of two other streams, which don't depend on the seed: runs of all seeds are scored on the same.

    A task says how an example is drawn (`draw`), where its labels are, and what a guess is worth.

    Args:
        vocab_size: Number of tokens.
        window_len: N, the positions of a window, which is one example.
        label_len: All labels lie in so many positions at the end of the window, for an architecture that has a loss
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
        for setting in ("n_validation", "n_test", "distance_bin"):
            value = self.hparams[setting]
            require(value is None or value >= 1, f"data.init_args.{setting}", value, "set it to 1 or more")
        for setting in ("n_validation", "n_test"):
            remedy = f"set it to {_MOST_EXAMPLES:,} or less: each example is drawn whenever the split is scored"
            value = self.hparams[setting]
            require(value <= _MOST_EXAMPLES, f"data.init_args.{setting}", value, remedy)
        in_window = label_len is None or 1 <= label_len <= window_len
        remedy = f"set it to 1 .. window_len = {window_len}, or to null"
        require(in_window, "data.init_args.label_len", label_len, remedy)
        self._vocab_size, self.label_len = vocab_size, label_len
        self.n_examples = {"validation": n_validation, "test": n_test}
        self.distance_bin = max(1, window_len // 16) if distance_bin is None else distance_bin

    @property
    def vocab_size(self) -> int:
        return self._vocab_size

    # The task

    @property
    @abstractmethod
    def labels_per_window(self) -> int:
        """K, the number of labels."""

    @property
    @abstractmethod
    def first_place(self) -> int:
        """The first position that can have a label."""

    @property
    @abstractmethod
    def n_answers(self) -> int:
        """How many tokens are equally likely to be a label, to a guess that has not read the window."""

    @property
    @abstractmethod
    def n_candidates(self) -> int:
        """How many tokens at least are equally likely to be a label, to one who has read all but its source."""

    @abstractmethod
    def draw(self, rng: np.random.Generator) -> Example:
        """An example."""

    def example(self, split: str, number: int) -> Example:
        """The example of a split with this number, from 0."""
        seed = self.seed if split == "train" else 0
        return self.draw(np.random.default_rng([seed, _SPLITS[split], number]))

    def setup(self, stage: str) -> None:
        """Refuse a model that has no loss where labels can be."""
        assert self.trainer is not None
        model: Any = self.trainer.lightning_module
        n_out = model.geometry.positions_out(self.window_len)
        remedy = (
            f"{type(model).__name__} has a loss at the last {n_out} of {self.window_len} positions only, and there "
        )
        remedy += f"are labels from position {self.first_place} on; set it to {n_out} or less"
        is_at_end = self.first_place >= self.window_len - n_out
        require(is_at_end, "data.init_args.label_len", self.label_len, remedy)

    # Training

    def train_dataloader(self) -> ExampleLoader:
        """Batches of `(inputs, labels, places)`, from where the run stands."""
        trainer = self.trainer
        assert trainer is not None
        remedy = "fresh examples never come to an end; set it to the number of optimizer steps"
        require(trainer.max_steps > 0, "trainer.max_steps", trainer.max_steps, remedy)
        return ExampleLoader(
            partial(self.example, "train"),
            self.counter,
            self.batch_size,
            trainer.max_steps * trainer.accumulate_grad_batches,
            trainer.global_rank,
            trainer.world_size,
        )

    def sample_places(self, n_samples: int) -> list[str]:
        taken = self.counter.samples
        return [f"sample {sample:,} of {self.name}" for sample in range(taken - n_samples, taken)]

    # Scoring

    def val_dataloader(self) -> ExampleScoringLoader:
        """The examples for validation."""
        return self._scoring_loader("validation", "limit_val_batches")

    def test_dataloader(self) -> ExampleScoringLoader:
        """The examples for the test."""
        return self._scoring_loader("test", "limit_test_batches")

    def predict_dataloader(self) -> ExampleScoringLoader:
        """There is none.

        Raises:
            SettingError: Always.
        """
        remedy = "it has no text, and `llp predict` writes the loss of each token of one; use `llp test`"
        raise SettingError("data", type(self).__name__, remedy)

    def _scoring_loader(self, split: str, limit: str) -> ExampleScoringLoader:
        trainer = self.trainer
        assert trainer is not None
        n_examples, n_labels = self.n_examples[split], self.labels_per_window
        windows = [ScoringWindow(number, 0, self.window_len, n_labels) for number in range(n_examples)]
        batches = [windows[first : first + self.batch_size] for first in range(0, n_examples, self.batch_size)]
        protocol = {
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
        return ExampleScoringLoader(partial(self.example, split), share, split, protocol, n_examples)

    def fingerprint(self, split: str) -> str:
        """SHA-256 of a scored split's examples."""
        digest = hashlib.sha256()
        for number in range(self.n_examples[split]):
            for part in self.example(split, number):
                digest.update(part.astype("<i8").tobytes())
        return digest.hexdigest()
