"""The progress bar: one over the optimizer steps of a whole run, or one over the batches of a test."""

import sys
import time
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from tqdm import tqdm

from llp.training.metrics import StepOutput, total_steps

_REFRESH_S = 0.1


class RunProgressBar(ProgressBar):
    """One bar over the optimizer steps of a whole run, which shows its validations too.

    It begins at the step of a resumed run, and the time left follows from the rate since then. A test or a prediction
    has a bar over its batches. Without a terminal there is no bar.
    """

    def __init__(self) -> None:
        super().__init__()
        self._bar: tqdm | None = None
        self._is_enabled = True
        self._drawn_at = 0.0

    def disable(self) -> None:
        self._is_enabled = False

    def enable(self) -> None:
        self._is_enabled = True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)  # leaves it to rank 0
        if not sys.stdout.isatty():
            self.disable()

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print on a line of its own, above a bar if there is one."""
        with tqdm.external_write_mode():
            print(*args, flush=True, **kwargs)

    def _open(self, total: int | None, initial: int = 0) -> None:
        left = "{elapsed}" if total is None else "|{bar:30}| {remaining} left"
        self._bar = tqdm(
            total=total,
            initial=initial,
            disable=not self._is_enabled,
            dynamic_ncols=True,
            file=sys.stdout,
            smoothing=0,  # the rate of the whole session, validations included
            bar_format=f"{{desc}} {left}{{postfix}}",
        )

    def _show(self, description: str, postfix: str) -> None:
        if self._bar is not None:
            self._drawn_at = time.monotonic()
            self._bar.set_description_str(description, refresh=False)
            self._bar.set_postfix_str(postfix)

    def _is_due(self) -> bool:
        """Whether to draw the bar again: reading metrics waits for the device."""
        return self._bar is not None and not self._bar.disable and time.monotonic() - self._drawn_at > _REFRESH_S

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    # Training

    def _show_step(self, trainer: Trainer, postfix: str) -> None:
        if self._bar is not None:
            total = total_steps(trainer)
            self._show(f"step {trainer.global_step:,}" + ("" if total is None else f" of {total:,}"), postfix)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open(total_steps(trainer), initial=trainer.global_step)
        self._show_step(trainer, "")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: StepOutput, batch: Any, batch_idx: int
    ) -> None:
        if self._bar is not None and trainer.global_step != self._bar.n:
            self._bar.n = trainer.global_step
            if self._is_due() or self._bar.n == self._bar.total:
                self._show_step(trainer, _metrics(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._show_step(trainer, _metrics(trainer))
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if trainer.training:
            self._show_step(trainer, "")  # the metrics may be on a device that has failed
        self._close()

    # Validation, test and prediction

    def _start_batches(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if _is_within_run(trainer):
            self._show_step(trainer, "validating")
        else:
            self._open(_n_batches(trainer))

    on_validation_start = on_test_start = on_predict_start = _start_batches

    def _end_batch(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if self._bar is not None and not _is_within_run(trainer):
            self._bar.n = batch_idx + 1
        if self._is_due():
            progress = f"batch {batch_idx + 1:,} of {_n_batches(trainer):,}"
            if _is_within_run(trainer):
                self._show_step(trainer, f"validating, {progress}")
            else:
                self._show(progress, "")

    on_validation_batch_end = on_test_batch_end = on_predict_batch_end = _end_batch

    def _end_batches(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if _is_within_run(trainer):
            self._show_step(trainer, _metrics(trainer))
        else:
            self._close()

    on_validation_end = on_test_end = on_predict_end = _end_batches


def _is_within_run(trainer: Trainer) -> bool:
    return trainer.state.fn == TrainerFn.FITTING


def _n_batches(trainer: Trainer) -> int:
    numbers = {TrainerFn.TESTING: trainer.num_test_batches, TrainerFn.PREDICTING: trainer.num_predict_batches}
    return int(sum(cast(list[int], numbers.get(cast(TrainerFn, trainer.state.fn), trainer.num_val_batches))))


def _metrics(trainer: Trainer) -> str:
    """What was logged with `prog_bar=True`."""
    metrics = dict(trainer.progress_bar_metrics)
    rate = metrics.pop("tokens/s", None)
    parts = [f"{name} {value:#.4g}" for name, value in metrics.items() if isinstance(value, float)]
    return ", ".join(parts if rate is None else [*parts, f"{rate:,.0f} tokens/s"])
