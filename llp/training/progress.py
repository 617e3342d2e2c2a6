"""How far a run is: one line that is rewritten in a terminal, and a line now and then in a log."""

import shutil
import sys
import time
from typing import Any, cast

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from tqdm import tqdm

from llp.training.metrics import StepOutput, total_steps

_REFRESH_S = 0.1
_LOG_S = 60.0


class Moments:
    """Each minute and each tenth of a run, whichever comes first: when a log and `run.json` say how far it is.

    Args:
        total: Steps of the whole run, or None if it has no end.
        first: The step from which it starts or resumes.
    """

    def __init__(self, total: int | None, first: int) -> None:
        self.total, self.tenth, self.last = total, self._tenth(total, first), time.monotonic()

    @staticmethod
    def _tenth(total: int | None, step: int) -> int:
        return 10 * step // total if total else 0

    def has_come(self, step: int) -> bool:
        """Whether one has come since the last time that this was true."""
        tenth, now = self._tenth(self.total, step), time.monotonic()
        if tenth == self.tenth and now - self.last < _LOG_S:
            return False
        self.tenth, self.last = tenth, now
        return True


class RunProgress(ProgressBar):
    """Shows the optimizer steps of a whole run, or the batches of a validation, a test or a prediction.

    In a terminal one line is rewritten. Elsewhere, as in `llp fit > log`, a line is added each minute and each tenth
    of the run, whichever comes first. The time left follows from the rate since the start or the resume.
    """

    def __init__(self) -> None:
        super().__init__()
        self._is_enabled = True
        self._is_terminal = sys.stdout.isatty()
        self._total: int | None = None
        self._first, self._started, self._shown_at = 0, 0.0, 0.0

    def disable(self) -> None:
        self._is_enabled = False

    def enable(self) -> None:
        self._is_enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print on a line of its own."""
        self._clear()
        print(*args, flush=True, **kwargs)

    def _clear(self) -> None:
        if self._is_terminal and self._is_enabled:
            print("\r\033[K", end="", flush=True)

    def _start(self, total: int | None, first: int = 0) -> None:
        self._total, self._first, self._moments = total, first, Moments(total, first)
        self._started = self._shown_at = time.monotonic()

    def _is_due(self, n: int) -> bool:
        """Whether to show the n-th step or batch: reading metrics waits for the device."""
        if self._is_terminal:
            return self._is_enabled and time.monotonic() - self._shown_at > _REFRESH_S
        return self._is_enabled and self._moments.has_come(n)

    def _show(self, unit: str, n: int, more: str = "") -> None:
        self._shown_at, total = time.monotonic(), self._total
        parts = [f"{unit} {n:,}" + ("" if total is None else f" of {total:,}"), *([more] if more else [])]
        if total is not None and n > self._first:
            left_s = (total - n) * (self._shown_at - self._started) / (n - self._first)
            parts.append(f"{tqdm.format_interval(left_s)} left")
        self._clear()
        line = ", ".join(parts)
        if self._is_terminal:
            print(line[: shutil.get_terminal_size().columns - 1], end="", flush=True)
        else:
            print(line, flush=True)

    # Training

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._start(total_steps(trainer), trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: StepOutput, batch: Any, batch_idx: int
    ) -> None:
        if self._is_due(trainer.global_step):
            self._show("step", trainer.global_step, _metrics(trainer))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._clear()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._clear()

    # Validation, test and prediction

    def _start_batches(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING:
            limits = {TrainerFn.TESTING: trainer.num_test_batches, TrainerFn.PREDICTING: trainer.num_predict_batches}
            numbers = limits.get(cast(TrainerFn, trainer.state.fn), trainer.num_val_batches)
            self._start(int(sum(cast(list[int], numbers))))
        elif self._is_terminal and self._is_enabled:
            self._show("step", trainer.global_step, "validating")

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
        if trainer.state.fn != TrainerFn.FITTING and self._is_due(batch_idx + 1):
            self._show("batch", batch_idx + 1)

    on_validation_batch_end = on_test_batch_end = on_predict_batch_end = _end_batch

    def _end_batches(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._clear()

    on_validation_end = on_test_end = on_predict_end = _end_batches


def _metrics(trainer: Trainer) -> str:
    """What was logged with `prog_bar=True`."""
    metrics = dict(trainer.progress_bar_metrics)
    rate = metrics.pop("tokens/s", None)
    parts = [f"{name} {value:#.4g}" for name, value in metrics.items() if isinstance(value, float)]
    return ", ".join(parts if rate is None else [*parts, f"{rate:,.0f} tokens/s"])
