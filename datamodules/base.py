"""The base class of all data modules: the training order, its state in a checkpoint, and limits on scoring."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal, TypedDict

from lightning.pytorch import LightningDataModule, Trainer

from datamodules.loaders import Batch, TrainingLoader, TrainingProgress
from llp.decoder.geometry import Geometry
from llp.errors import require
from llp.scoring.windows import ScoringWindow


class DataState(TypedDict, total=False):
    """The state of a data module in a checkpoint."""

    samples_taken: int
    batches_taken: int | None  # missing from older checkpoints


class LanguageDataModule(LightningDataModule, ABC):
    """Training windows in an order that a resumed run continues, and splits that are scored.

    The Trainer's `limit_val_batches`, `limit_test_batches` and `limit_predict_batches` count batches over all ranks:
    the first so many, or that fraction of them, in the order of a single process with the same settings. So a limited
    score covers the same windows on any number of ranks.

    Args:
        window_len: n, the positions of a training window.
        batch_size: Training windows in a batch of one device.
        seed: Seed of the order of training windows.

    Raises:
        SettingError: If a value can't be used.
    """

    name: str
    """Of the benchmark or the task, for people and files."""
    vocab_size: int
    """Number of tokens, known before anything is prepared."""
    labels_per_window: int | None = None
    """How many positions of a training window have a loss, or None if all have that can."""
    changeable_settings: frozenset[str]
    """The settings that can change on a resume, because they leave the training windows as they are."""
    burn_in: int | Literal["reach"] = 0
    """Tokens before a training window that are read without a loss; `reach`: all that the model can depend on."""
    geometry: Geometry | None = None
    """Of the model that reads the windows. The model hands it over in its `setup`, before any loader is made."""

    def __init__(self, window_len: int, batch_size: int, seed: int) -> None:
        super().__init__()
        require(seed >= 0, "seed_everything", seed, "set it to 0 or more")
        for setting, value in (("window_len", window_len), ("batch_size", batch_size)):
            require(value >= 1, f"data.init_args.{setting}", value, "set it to 1 or more")
        self.window_len, self.batch_size, self.seed = window_len, batch_size, seed
        self.progress = TrainingProgress()

    @abstractmethod
    def describe_samples(self, n_samples: int) -> list[str]:
        """What the most recent samples are, in the order of their numbers."""

    @abstractmethod
    def check_geometry(self, geometry: Geometry) -> None:
        """Raise a `SettingError` if the model can't be trained or scored on these windows."""

    def prepare_data(self) -> None:
        """Check the windows first, if the model's geometry is known: before any long work."""
        if self.geometry is not None:
            self.check_geometry(self.geometry)

    def state_dict(self) -> DataState:  # type: ignore[override]
        return {"samples_taken": self.progress.samples, "batches_taken": self.progress.batches}

    def load_state_dict(self, state_dict: DataState) -> None:  # type: ignore[override]
        self.progress.samples = state_dict["samples_taken"]
        self.progress.batches = state_dict.get("batches_taken")

    def _attached(self) -> tuple[Trainer, Geometry]:
        """The trainer and the model's geometry, when loaders are made."""
        assert self.trainer is not None
        assert self.geometry is not None
        return self.trainer, self.geometry

    def _training_loader(self, make_batch: Callable[[range], Batch], n_batches: int) -> TrainingLoader:
        """Training batches; `n_batches` is their number where the run's length is not given by `max_steps`."""
        trainer, _ = self._attached()
        if self.progress.batches is None:
            self.progress.batches = trainer.global_step * trainer.accumulate_grad_batches
        if trainer.max_steps > 0:
            # One pass of the trainer over the loader is then the whole run, so that the progress bar shows how much is
            # left. The epochs of the data are inside the order.
            n_batches = trainer.max_steps * trainer.accumulate_grad_batches
        else:  # an epoch ends with an optimizer step; the batches that are left come first in the next one
            every = trainer.accumulate_grad_batches
            n_batches = max(n_batches // every, 1) * every
        ranks = trainer.global_rank, trainer.world_size
        return TrainingLoader(make_batch, self.progress, self.batch_size, n_batches, *ranks)

    def _limited(self, batches: list[list[ScoringWindow]], setting: str) -> list[list[ScoringWindow]]:
        """The batches that one of the Trainer's limits leaves to all ranks together."""
        limit = getattr(self.trainer, setting)
        kept = batches[: limit if isinstance(limit, int) else int(len(batches) * limit)]
        remedy = f"that is none of {len(batches):,} batches; set it to a number of batches, or to a greater fraction"
        require(len(kept) > 0 or not batches, f"trainer.{setting}", limit, remedy)
        if len(kept) < len(batches):
            # Lightning applies the limit to each rank's share. A number leaves such a share as it is; a fraction
            # would be applied twice.
            setattr(self.trainer, setting, len(kept))
        return kept
