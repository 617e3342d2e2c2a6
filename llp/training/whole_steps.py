"""Each optimizer step takes all of its batches, and what would train something else than is announced is refused."""

import math
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    GradientAccumulationScheduler,
    LearningRateFinder,
    StochasticWeightAveraging,
)

from llp.errors import SettingError, require
from llp.lightning_internals import find_callback, is_accumulating, untyped
from llp.training.metrics import StepOutput

_REFUSED: dict[type[Callback], str] = {
    StochasticWeightAveraging: "its schedule would take the place of the model's; use EMAWeightAveraging",
    GradientAccumulationScheduler: "the size of a step is announced once; set trainer.accumulate_grad_batches",
    LearningRateFinder: "what it finds is not used; set model.init_args.learning_rate",
}


def check_trainer(trainer: Trainer) -> None:
    """Raise a `SettingError` for what the Trainer offers and this training can't do rightly."""
    overfit, limit = untyped(trainer).overfit_batches, trainer.limit_train_batches
    remedy = "training would take new windows all the same; leave it out, and train on a text that is as small"
    require(overfit == 0, "trainer.overfit_batches", overfit, remedy)
    if isinstance(limit, int):
        _require_whole_steps(limit, trainer.accumulate_grad_batches)
    for cls, remedy in _REFUSED.items():
        require(find_callback(trainer, cls) is None, "trainer.callbacks", cls.__name__, remedy)


def _require_whole_steps(n_batches: float, every: int) -> None:
    if math.isfinite(n_batches) and n_batches % every:
        whole = int(n_batches - n_batches % every)
        remedy = (
            f"an epoch of {int(n_batches):,} batches would end within an optimizer step of "
            f"trainer.accumulate_grad_batches = {every}; set it to {whole + every:,}" + (f" or {whole:,}" * (whole > 0))
        )
        raise SettingError("trainer.limit_train_batches", int(n_batches), remedy)


class WholeSteps(Callback):
    """Refuses an epoch that ends within an optimizer step, and lets nothing stop the run there.

    Lightning would take a smaller step from the batches that are left. What stops a run (`max_time`, say) waits for the
    step's last batch.
    """

    def __init__(self) -> None:
        self._stops = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            check_trainer(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Batches of this epoch so far: Lightning takes a step whenever their number is a multiple of `every`.
        done, every = trainer.fit_loop.epoch_loop.batch_progress.current.ready, trainer.accumulate_grad_batches
        remedy = (
            f"the run is resumed after {done:,} batches, and the first step would take only a part of its own; set it "
            f"to a divisor of {done:,}, or start a new run from the weights of this one with --init_from"
        )
        require(done % every == 0, "trainer.accumulate_grad_batches", every, remedy)
        _require_whole_steps(trainer.num_training_batches, every)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: StepOutput, batch: Any, batch_idx: int
    ) -> None:
        if is_accumulating(trainer):
            self._stops = self._stops or trainer.should_stop
            trainer.should_stop = False
        elif self._stops:
            trainer.should_stop = True
