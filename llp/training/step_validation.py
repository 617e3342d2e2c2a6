"""When a run validates: in whole optimizer steps, and at its end."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from llp.training.metrics import StepOutput


class StepValidation(Callback):
    """Validates after the last step, whatever the interval, and never between the batches of one optimizer step.

    So a run ends with a score and a checkpoint, and no checkpoint is taken where gradients wait to be summed up.
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
            trainer.val_check_batch = 1  # consulted right after this hook
            trainer._val_check_time_interval = None  # type: ignore[attr-defined]  # an interval of time would come first
