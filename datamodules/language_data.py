"""What every data module shares, whatever its windows hold: their order, its place in a checkpoint, and limits."""

from abc import ABC, abstractmethod
from typing import Any, Literal

from lightning.pytorch import LightningDataModule

from datamodules.loaders import SampleCounter
from datamodules.windows import ScoringWindow, limited
from llp.errors import require


class LanguageDataModule(LightningDataModule, ABC):
    """Training windows in an order that a resumed run continues, and splits that are scored.

    The Trainer's `limit_val_batches`, `limit_test_batches` and `limit_predict_batches` count batches over all ranks:
    the first so many, or that share of them, in the order of a single process with the same settings. So a limited
    score is that of the same windows on any number of ranks.

    Args:
        window_len: n, the positions of a training window.
        batch_size: Training windows in a batch of one device.
        seed: Seed of the order of training windows.

    Raises:
        SettingError: If a value can't be used.
    """

    name: str
    """Of the benchmark or the task, for people and files."""
    changeable_settings: frozenset[str]
    """The settings that can change on a resume: they leave the training windows as they are."""
    burn_in: int | Literal["reach"] = 0
    """Tokens before a training window that are read and have no loss; `reach`: as many as the model can depend on."""

    def __init__(self, window_len: int, batch_size: int, seed: int) -> None:
        super().__init__()
        require(seed >= 0, "seed_everything", seed, "set it to 0 or more")
        for setting, value in (("window_len", window_len), ("batch_size", batch_size)):
            require(value >= 1, f"data.init_args.{setting}", value, "set it to 1 or more")
        self.window_len, self.batch_size, self.seed = window_len, batch_size, seed
        self.counter = SampleCounter()

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """Number of tokens, known before anything is prepared."""

    @property
    def labels_per_window(self) -> int | None:
        """How many positions of a training window have a loss; None: all at which the architecture can have one."""
        return None

    @abstractmethod
    def sample_places(self, n_samples: int) -> list[str]:
        """Which the last samples taken were, in the order of their numbers."""

    def state_dict(self) -> dict[str, Any]:
        return {"samples_taken": self.counter.samples}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.counter.samples = state_dict["samples_taken"]

    def _limited(self, batches: list[list[ScoringWindow]], setting: str) -> list[list[ScoringWindow]]:
        """The batches that one of the Trainer's limits leaves to all ranks together."""
        limit = getattr(self.trainer, setting)
        kept = limited(batches, limit)
        remedy = f"that is none of {len(batches):,} batches; set it to a number of batches, or to a greater share"
        require(len(kept) > 0 or not batches, f"trainer.{setting}", limit, remedy)
        if len(kept) < len(batches):
            # Lightning applies the limit to each rank's share. A number leaves such a share as it is; a fraction
            # would be taken of it once more.
            setattr(self.trainer, setting, len(kept))
        return kept
