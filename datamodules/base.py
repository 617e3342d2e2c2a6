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
    """Training windows in an order that a resumed run continues, and splits to score.

    The Trainer's `limit_val_batches`, `limit_test_batches` and `limit_predict_batches` apply to the batches of all
    ranks together, in the order in which a single process would score them. A limited score therefore covers the same
    windows on any number of ranks.

    Args:
        window_len: n, the number of positions in a training window.
        batch_size: Number of training windows per batch and device.
        seed: Seed of the order of training windows.

    Raises:
        SettingError: If a value can't be used.
    """

    name: str
    """Name of the benchmark or task, used in messages and file names."""
    vocab_size: int
    """Number of tokens in the vocabulary, known before anything is prepared."""
    labels_per_window: int | None = None
    """Number of positions of a training window that have a loss; None if all that can have a loss do."""
    changeable_settings: frozenset[str]
    """Names of settings that may change when a run is resumed, because the training windows don't depend on them."""
    burn_in: int | Literal["reach"] = 0
    """Number of tokens read without a loss before a training window; `reach` for all that the model can depend on."""
    geometry: Geometry | None = None
    """Geometry of the model that reads the windows. The model sets it in its `setup`, before any loader is created."""

    def __init__(self, window_len: int, batch_size: int, seed: int) -> None:
        super().__init__()
        require(seed >= 0, "seed_everything", seed, "set it to 0 or more")
        for setting, value in (("window_len", window_len), ("batch_size", batch_size)):
            require(value >= 1, f"data.init_args.{setting}", value, "set it to 1 or more")
        self.window_len, self.batch_size, self.seed = window_len, batch_size, seed
        self.progress = TrainingProgress()

    @abstractmethod
    def describe_samples(self, n_samples: int) -> list[str]:
        """A line about each of the `n_samples` most recent training samples, the oldest first."""

    @abstractmethod
    def check_geometry(self, geometry: Geometry) -> None:
        """Raise a `SettingError` if the model can't be trained or scored on these windows."""

    def prepare_data(self) -> None:
        """Check the windows before any long work, if the model's geometry is known."""
        if self.geometry is not None:
            self.check_geometry(self.geometry)

    def state_dict(self) -> DataState:  # type: ignore[override]
        return {"samples_taken": self.progress.samples, "batches_taken": self.progress.batches}

    def load_state_dict(self, state_dict: DataState) -> None:  # type: ignore[override]
        self.progress.samples = state_dict["samples_taken"]
        self.progress.batches = state_dict.get("batches_taken")

    def _attached(self) -> tuple[Trainer, Geometry]:
        """The trainer and the model's geometry, which are set by the time a loader is created."""
        assert self.trainer is not None
        assert self.geometry is not None
        return self.trainer, self.geometry

    def _training_loader(self, make_batch: Callable[[range], Batch], n_batches: int) -> TrainingLoader:
        """A loader of training batches: `n_batches` per epoch, unless `max_steps` determines the run's length."""
        trainer, _ = self._attached()
        if self.progress.batches is None:
            self.progress.batches = trainer.global_step * trainer.accumulate_grad_batches
        if trainer.max_steps > 0:
            # The whole run is one pass over the loader, so that the progress bar shows how much is left. The epochs of
            # the data are part of the training order.
            n_batches = trainer.max_steps * trainer.accumulate_grad_batches
        else:  # an epoch ends with an optimizer step; leftover batches begin the next epoch
            every = trainer.accumulate_grad_batches
            n_batches = max(n_batches // every, 1) * every
        ranks = trainer.global_rank, trainer.world_size
        return TrainingLoader(make_batch, self.progress, self.batch_size, n_batches, *ranks)

    def _limited(self, batches: list[list[ScoringWindow]], setting: str) -> list[list[ScoringWindow]]:
        """The batches that one of the Trainer's limits admits, counted over all ranks."""
        limit = getattr(self.trainer, setting)
        kept = batches[: limit if isinstance(limit, int) else int(len(batches) * limit)]
        remedy = f"this selects none of {len(batches):,} batches; set it to a number of batches or to a larger fraction"
        require(len(kept) > 0 or not batches, f"trainer.{setting}", limit, remedy)
        if len(kept) < len(batches):
            # Lightning applies the limit again, to each rank's share. A number of batches doesn't shorten the share
            # any further, but a fraction would.
            setattr(self.trainer, setting, len(kept))
        return kept
