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
    """One bar over the optimizer steps of a whole run, or over the batches of a validation, a test or a prediction.

    It begins at the step of a resumed run, and the time left follows from the rate since then. Without a terminal there
    is no bar.
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

    def _open(self, unit: str, total: int | None, initial: int = 0) -> None:
        left = " {elapsed}" if total is None else " of {total:,} |{bar:30}| {remaining} left"
        self._bar = tqdm(
            total=total,
            initial=initial,
            disable=not self._is_enabled,
            dynamic_ncols=True,
            file=sys.stdout,
            smoothing=0,  # the rate of the whole session, validations included
            bar_format=f"{unit} {{n:,}}{left}{{postfix}}",
        )

    def _is_due(self) -> bool:
        """Whether to draw the bar again: reading metrics waits for the device."""
        return self._bar is not None and not self._bar.disable and time.monotonic() - self._drawn_at > _REFRESH_S

    def _draw(self, n: int, postfix: str = "") -> None:
        if self._bar is not None:
            self._drawn_at = time.monotonic()
            self._bar.n = n
            self._bar.set_postfix_str(postfix)

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    # Training

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._open("step", total_steps(trainer), initial=trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: StepOutput, batch: Any, batch_idx: int
    ) -> None:
        if self._bar is not None and trainer.global_step != self._bar.n and self._is_due():
            self._draw(trainer.global_step, _metrics(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw(trainer.global_step, _metrics(trainer))
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._close()

    # Validation, test and prediction

    def _start_batches(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._draw(trainer.global_step, "validating")
        else:
            limits = {TrainerFn.TESTING: trainer.num_test_batches, TrainerFn.PREDICTING: trainer.num_predict_batches}
            numbers = limits.get(cast(TrainerFn, trainer.state.fn), trainer.num_val_batches)
            self._open("batch", int(sum(cast(list[int], numbers))))

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
        if trainer.state.fn != TrainerFn.FITTING and self._is_due():
            self._draw(batch_idx + 1)

    on_validation_batch_end = on_test_batch_end = on_predict_batch_end = _end_batch

    def _end_batches(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            self._draw(trainer.global_step, _metrics(trainer))
        else:
            self._close()

    on_validation_end = on_test_end = on_predict_end = _end_batches


def _metrics(trainer: Trainer) -> str:
    """What was logged with `prog_bar=True`."""
    metrics = dict(trainer.progress_bar_metrics)
    rate = metrics.pop("tokens/s", None)
    parts = [f"{name} {value:#.4g}" for name, value in metrics.items() if isinstance(value, float)]
    return ", ".join(parts if rate is None else [*parts, f"{rate:,.0f} tokens/s"])
