"""What a run logs beside what Lightning does: its loss, learning rate, tokens and their rate."""

import math
import time
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer

from llp.training.throughput import compute_dtype, peak_rate

StepOutput = Tensor | Mapping[str, Any] | None


def log_step(trainer: Trainer, figures: Mapping[str, Any], step: int) -> None:
    """Log figures of an optimizer step, counted from 1, as `train/*` where `log_every_n_steps` divides it.

    Straight to the logger: what Lightning's `log` takes is written only after a checkpoint of the step is, and a run
    that goes on from there would miss a point of its curves.
    """
    if step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
        for logger in trainer.loggers:
            logger.log_metrics({f"train/{name}": float(value) for name, value in figures.items()}, step - 1)


class RunMetrics(Callback):
    """Logs the loss, the learning rate, the tokens trained on and their rate, each over optimizer steps.

    `tokens` are trained positions, those with a loss, and `input_tokens` all that the model read, over all ranks. The
    rate is that of trained positions since the last logged step; validation does not count. `mfu` is the share of what
    the devices could compute (`llp.training.throughput`) that went into the model's own FLOPs, those of its forward and
    backward pass; where it comes out above 1, what the devices can do was measured wrong, and it is left out.
    `data_wait` is the share of the time in which the model waited for its next batch.

    `seconds` is the time that training has taken so far, without validations; a checkpoint keeps it with the counts of
    tokens, so that they go on in a resumed run.
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
        peak = peak_rate(pl_module.device, compute_dtype(str(trainer.precision)))
        self._peak_flops = peak.flops * trainer.world_size
        self._has_logged = False
        self._started = time.perf_counter()
        self._begin_interval(trainer)

    def _begin_interval(self, trainer: Trainer) -> None:
        """Rates are those from here to the next logged step."""
        self._logged_tokens, self._flops, self._waited = self.tokens, 0, _seconds_waited(trainer)
        self._logged_seconds = self.seconds

    def _count_seconds(self) -> None:
        """Count the time since it was last counted, or since a validation."""
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
        self, trainer: Trainer, pl_module: Any, outputs: StepOutput, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(outputs, Mapping)
        self.tokens += outputs["trained_tokens"] * trainer.world_size
        self.input_tokens += outputs["input_tokens"] * trainer.world_size
        self._flops += outputs["flops"] * trainer.world_size
        self._count_seconds()
        if trainer.fit_loop._should_accumulate():
            return
        seconds = self.seconds - self._logged_seconds
        rate = (self.tokens - self._logged_tokens) / seconds
        is_logged = trainer.global_step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        if is_logged or not self._has_logged:  # the progress bar knows a rate from the first step on
            pl_module.log("tokens/s", rate, prog_bar=True, logger=False)
        if not is_logged:
            return
        figures = {
            "loss": pl_module.step_loss,
            "learning_rate": self._learning_rate,
            "tokens": self.tokens,
            "input_tokens": self.input_tokens,
            "tokens_per_second": rate,
            "data_wait": (_seconds_waited(trainer) - self._waited) / seconds,
        }
        mfu = self._flops / seconds / self._peak_flops
        log_step(trainer, figures | ({"mfu": mfu} if mfu <= 1 else {}), trainer.global_step)
        self._has_logged = True
        self._begin_interval(trainer)


def _seconds_waited(trainer: Trainer) -> float:
    """For batches, since the loader was made; not a number for a loader that is not ours, which doesn't know."""
    return getattr(trainer.train_dataloader, "seconds", math.nan)


def run_metrics(trainer: Any) -> RunMetrics:
    """The trainer's `RunMetrics`, which every `LanguageModel` brings along."""
    return next(callback for callback in trainer.callbacks if isinstance(callback, RunMetrics))
