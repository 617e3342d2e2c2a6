"""The metrics of a run: its loss, learning rate, tokens and their rate, and the utilisation of the device."""

import math
import time
from collections.abc import Mapping
from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer

from llp.lightning_internals import find_callback, is_accumulating, untyped
from llp.training.throughput import compute_dtype, peak_rate
from llp.training_module import TrainingModule

StepOutput = Tensor | Mapping[str, Any] | None


def total_steps(trainer: Trainer) -> int | None:
    """Optimizer steps of the whole run, including those before a resume, or None if it has no end."""
    steps = trainer.estimated_stepping_batches
    return int(steps) if 0 < steps < math.inf else None


def validation_metrics(trainer: Trainer) -> dict[str, float]:
    """The metrics of the last validation, without the prefix `val/`."""
    metrics = trainer.callback_metrics
    return {name.removeprefix("val/"): float(metrics[name]) for name in metrics if name.startswith("val/")}


def log_step(trainer: Trainer, metrics: Mapping[str, float | Tensor], step: int) -> None:
    """Log metrics of an optimizer step, counted from 1, as `train/*` if `log_every_n_steps` divides it.

    They go straight to the loggers. Lightning's `log` writes them only after the step's checkpoint, so that a run
    resumed from it would miss a point of its curves.
    """
    if step % untyped(trainer).log_every_n_steps == 0:
        for logger in trainer.loggers:
            logger.log_metrics({f"train/{name}": float(value) for name, value in metrics.items()}, step - 1)


class RunMetrics(Callback):
    """Logs the loss, the learning rate, the number of tokens and their rate every `log_every_n_steps` optimizer steps.

    - `tokens`: positions with a loss so far, over all ranks; `input_tokens`: all positions that the model has read.
    - `tokens_per_second`: positions with a loss per second since the last logged step, without validations.
    - `mfu`: the model FLOPs utilisation, the share of the devices' peak rate that went into the forward and backward
      passes. It is left out if it exceeds 1, because then the peak rate was measured wrong.
    - `data_wait`: the share of the time in which the model waited for its next batch.

    `seconds` is the training time so far, without validations. A checkpoint stores it with the numbers of tokens, and
    a resumed run continues from them.
    """

    def __init__(self) -> None:
        self.tokens = self.input_tokens = 0
        self.seconds = self._started = 0.0
        self._learning_rate = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"tokens": self.tokens, "input_tokens": self.input_tokens, "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.tokens, self.input_tokens = state_dict["tokens"], state_dict["input_tokens"]
        self.seconds = state_dict["seconds"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        rate = peak_rate(pl_module.device, compute_dtype(str(trainer.precision)))
        self._peak_flops = rate * trainer.world_size
        self._has_logged = False
        self._started = time.perf_counter()
        self._begin_interval(trainer)

    def _begin_interval(self, trainer: Trainer) -> None:
        """Start to measure the rates that the next logged step reports."""
        self._logged_tokens, self._flops, self._waited = self.tokens, 0, _seconds_waited(trainer)
        self._logged_seconds = self.seconds

    def _count_seconds(self) -> None:
        """Add the time since this was last called, or since a validation."""
        now = time.perf_counter()
        self.seconds, self._started = self.seconds + now - self._started, now

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._count_seconds()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = time.perf_counter()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self._learning_rate = optimizer.param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: StepOutput, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(outputs, Mapping)
        self.tokens += outputs["trained_tokens"] * trainer.world_size
        self.input_tokens += outputs["input_tokens"] * trainer.world_size
        self._flops += outputs["flops"] * trainer.world_size
        self._count_seconds()
        if is_accumulating(trainer):
            return
        seconds = self.seconds - self._logged_seconds
        rate = (self.tokens - self._logged_tokens) / seconds
        is_logged = trainer.global_step % untyped(trainer).log_every_n_steps == 0
        if is_logged or not self._has_logged:  # the progress bar shows a rate from the first step on
            pl_module.log("tokens/s", rate, prog_bar=True, logger=False)
        if not is_logged:
            return
        metrics: dict[str, float | Tensor] = {
            "loss": cast(TrainingModule, pl_module).step_loss,
            "learning_rate": self._learning_rate,
            "tokens": self.tokens,
            "input_tokens": self.input_tokens,
            "tokens_per_second": rate,
            "data_wait": (_seconds_waited(trainer) - self._waited) / seconds,
        }
        mfu = self._flops / seconds / self._peak_flops
        log_step(trainer, metrics | ({"mfu": mfu} if mfu <= 1 else {}), trainer.global_step)
        self._has_logged = True
        self._begin_interval(trainer)


def _seconds_waited(trainer: Trainer) -> float:
    """Seconds spent waiting for batches since the loader was created; NaN for a loader that does not measure it."""
    return getattr(trainer.train_dataloader, "seconds", math.nan)


def run_metrics(trainer: Trainer) -> RunMetrics:
    """The trainer's `RunMetrics`, which every `TrainingModule` adds to its callbacks."""
    metrics = find_callback(trainer, RunMetrics)
    assert metrics is not None
    return metrics


class FinalHyperparameters(Callback):
    """Writes the hyperparameters with the metrics of the last validation to TensorBoard's HPARAMS page."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if isinstance(trainer.logger, TensorBoardLogger) and trainer.is_global_zero:
            final = {f"final/{name}": value for name, value in validation_metrics(trainer).items()}
            trainer.logger.log_hyperparams(trainer.logger.hparams, final, step=trainer.global_step)
