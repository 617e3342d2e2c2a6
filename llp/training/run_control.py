"""How a run starts, what each batch draws, and when it validates."""

import os
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

from llp.checkpoints import reading
from llp.errors import require
from llp.lightning_internals import validate_after_this_batch
from llp.training.metrics import StepOutput
from llp.training_module import TrainingModule


class BatchSeed(Callback):
    """Seeds every batch from (seed, batch, rank), so that a resumed run draws what the uninterrupted one would.

    Under data parallelism each rank draws its own dropout.
    """

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        seed = os.environ.get("PL_GLOBAL_SEED", "0")  # where Lightning's `seed_everything` leaves it
        batches = trainer.fit_loop.epoch_loop.total_batch_idx
        entropy = np.random.SeedSequence([int(seed), batches, trainer.global_rank])
        torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> 1))


class StepValidation(Callback):
    """Validates after the last step, whatever the interval, and never between the batches of one optimizer step.

    So a run ends with a score and a checkpoint, and no checkpoint is taken while gradients are being accumulated.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        interval, accumulated = trainer.val_check_batch, trainer.accumulate_grad_batches
        if isinstance(interval, int) and interval % accumulated:
            trainer.val_check_batch = interval + -interval % accumulated
            rank_zero_info(f"Validating every {trainer.val_check_batch:,} batches, in whole optimizer steps")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: StepOutput, batch: Any, batch_idx: int
    ) -> None:
        if 0 < trainer.max_steps <= trainer.global_step:
            validate_after_this_batch(trainer)


class InitialWeights(Callback):
    """Starts a run from a checkpoint's weights, with an optimizer and a schedule of its own.

    The checkpoint may be of another architecture, if its weights have the same names and shapes. The run's checkpoints
    and reports record it as `initialized_from`. A resumed run continues with its own weights.

    Args:
        path: The checkpoint.

    Raises:
        SettingError: If it can't be read, or is sharded.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        checkpoint = reading.read(self.path)
        reading.require_one_file(self.path)
        self.weights = checkpoint["state_dict"]
        self.origin = {
            "checkpoint": str(self.path),
            "checkpoint_sha256": reading.sha256(self.path),
            "architecture": checkpoint["architecture"],
            "step": checkpoint["global_step"],
        }

    def check_fits(self, model: TrainingModule) -> None:
        """Raise a `SettingError` unless the weights have the names and shapes of the model's."""
        ours = reading.shapes(dict(model.hparams), model)
        theirs = {name: weight.shape for name, weight in self.weights.items()}
        for name in [*ours, *theirs]:
            there, here = (tuple(shapes[name]) if name in shapes else None for shapes in (theirs, ours))
            remedy = f"its weights are not those of this model: {name} is {there} there and {here} here"
            require(there == here, "init_from", self.path, remedy)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.ckpt_path is None:
            with torch.no_grad():
                set_model_state_dict(pl_module, self.weights, options=StateDictOptions(full_state_dict=True))
            cast(TrainingModule, pl_module).initialized_from = self.origin
        self.weights = {}
