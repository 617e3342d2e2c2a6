"""The progress bar of a run: one over the optimizer steps of all of it."""

import logging
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.trainer.states import TrainerFn
from tqdm.contrib.logging import logging_redirect_tqdm

from llp.training.run_length import total_steps

_REFRESH_S = 0.1


class RunProgressBar(TQDMProgressBar):
    """Lightning's bar, but over the optimizer steps of a whole run while it trains.

    It begins at the step of a resumed run, and counts its own rate from there. A validation within the run is shown on
    it too. Warnings and log messages come on lines of their own above it. Without a terminal there is no bar.
    """

    def __init__(self) -> None:
        super().__init__()
        self._drawn_at = 0.0
        self._redirection = ExitStack()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if not sys.stdout.isatty():
            self.disable()

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print on a line of its own, above a bar if there is one."""
        with Tqdm.external_write_mode():
            print(*args, flush=True, **kwargs)

    # Training

    def init_train_tqdm(self) -> Tqdm:
        total = total_steps(self.trainer)
        left = "{elapsed}" if total is None else "|{bar:30}| {remaining} left"
        return Tqdm(
            desc=self.train_description,
            total=total,
            initial=self.trainer.global_step,
            disable=self.is_disabled,
            dynamic_ncols=True,
            file=sys.stdout,
            smoothing=0,  # the time left follows from the rate of the whole session, validations included
            bar_format=f"{{desc}} {left}{{postfix}}",
        )

    @property
    def train_description(self) -> str:
        total = total_steps(self.trainer)
        return f"step {self.trainer.global_step:,}" + ("" if total is None else f" of {total:,}")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if self.is_enabled:
            self._redirection.enter_context(_messages_above())

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """An epoch means nothing here: the bar goes on."""

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nor does its end."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        bar = self.train_progress_bar
        if trainer.global_step != bar.n:  # a step has ended, no batch alone
            bar.n = trainer.global_step
            if self._is_due() or bar.n == bar.total:
                self._show(self._figures(trainer, pl_module))

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What was logged for the bar, without Lightning's "v_num", the end of the run's name."""
        return {name: value for name, value in super().get_metrics(trainer, pl_module).items() if name != "v_num"}

    def _figures(self, trainer: Trainer, pl_module: LightningModule) -> str:
        figures = self.get_metrics(trainer, pl_module)
        rate = figures.pop("tokens/s", None)
        parts = [
            f"{name} {value:#.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in figures.items()
        ]
        return ", ".join(parts if rate is None else [*parts, f"{rate:,.0f} tokens/s"])

    def _is_due(self) -> bool:
        """Whether the bar is there, and old enough to be drawn again: reading figures waits for the device."""
        return not self.train_progress_bar.disable and time.monotonic() - self._drawn_at > _REFRESH_S

    def _show(self, postfix: str) -> None:
        self._drawn_at = time.monotonic()
        self.train_progress_bar.set_description_str(self.train_description, refresh=False)
        self.train_progress_bar.set_postfix_str(postfix)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._show(self._figures(trainer, pl_module))
        self._close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._train_progress_bar is not None:
            self._show("")  # the figures may lie on a device that has failed
        self._close()

    def _close(self) -> None:
        """Leave the cursor at the beginning of a line."""
        bars = self._train_progress_bar, self._val_progress_bar, self._test_progress_bar, self._predict_progress_bar
        for bar in bars:
            if bar is not None:
                bar.close()
        self._redirection.close()

    # Validation within a run

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if _is_within_run(trainer):
            self._show("validating")
        else:
            super().on_validation_start(trainer, pl_module)

    def on_validation_batch_start(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if not _is_within_run(trainer):
            super().on_validation_batch_start(trainer, *args, **kwargs)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if not _is_within_run(trainer):
            super().on_validation_batch_end(trainer, pl_module, outputs, batch, batch_idx, dataloader_idx)
        elif self._is_due():
            self._show(f"validating, batch {batch_idx + 1:,} of {sum(trainer.num_val_batches):,}")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if _is_within_run(trainer):
            self._show(self._figures(trainer, pl_module))
        else:
            super().on_validation_end(trainer, pl_module)


def _is_within_run(trainer: Trainer) -> bool:
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking


@contextmanager
def _messages_above() -> Iterator[None]:
    """Warnings and log messages are written above a bar, not behind it."""
    show = warnings.showwarning

    def show_above(*args: Any, **kwargs: Any) -> None:
        with Tqdm.external_write_mode(file=sys.stderr):
            show(*args, **kwargs)

    known = [logging.root, *logging.root.manager.loggerDict.values()]
    to_console = [
        logger
        for logger in known
        if isinstance(logger, logging.Logger)
        and any(type(handler) is logging.StreamHandler for handler in logger.handlers)
    ]
    warnings.showwarning = show_above
    try:
        with logging_redirect_tqdm(to_console):
            yield
    finally:
        warnings.showwarning = show
