"""What came of a run, and what to do next: its last screen."""

import os
import shlex
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from tqdm import tqdm

from llp.checkpoints import reading
from llp.checkpoints.callback import run_checkpoint
from llp.training.metrics import run_metrics
from llp.training.run_length import total_steps
from llp.training.text_block import text_block
from llp.training.validation_lines import ValidationLines, figures_line


class RunSummary(Callback):
    """Prints at the end of a run what it took, its best and last checkpoint with their figures, and what to do next.

    It needs a `LanguageModel`, and `ValidationLines` for the figures.
    """

    def __init__(self) -> None:
        self._started: float | None = None
        self._first_step = 0

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._folder = trainer.log_dir  # on every rank: it is broadcast

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started, self._first_step = time.perf_counter(), trainer.global_step

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        step, total = trainer.global_step, total_steps(trainer)
        is_complete = total is not None and step >= total
        where = f"step {step:,}" + ("" if total is None else f" of {total:,}")
        best, last = (_existing(path) for path in _paths(trainer))
        if self._started is None:
            title, rows = f"Nothing to train: the run is at its end, step {step:,}", []
        else:
            title = f"{'Finished' if is_complete or total is None else 'Ended early'}: {where}"
            rows = [("trained", self._effort(trainer, time.perf_counter() - self._started))]
        rows += [("best", _figures(trainer, best))] if best else []
        rows += [("last", _figures(trainer, last))] if last else []
        rows += [("folder", os.path.relpath(self._folder))] if self._folder else []
        rows += [("next", "\n".join(_commands(trainer, best or last, last, is_complete)))] if last else []
        print(text_block(title, rows), flush=True)

    def _effort(self, trainer: Trainer, seconds: float) -> str:
        """Steps and time since training began in this process; tokens and their rate since the run did."""
        metrics, steps = run_metrics(trainer), trainer.global_step - self._first_step
        rate = metrics.tokens / metrics.seconds
        return (
            f"{steps:,} steps in {tqdm.format_interval(seconds)}, validation included; "
            f"{metrics.tokens:,} tokens in all, at {rate:,.0f} tokens/s between validations"
        )


def _paths(trainer: Any) -> tuple[str, str]:
    """Where the best and the last checkpoint should be."""
    callback = run_checkpoint(trainer)
    return ("", "") if callback is None else (callback.best_model_path, callback.last_model_path)


def _existing(path: str) -> Path | None:
    return Path(os.path.relpath(path)) if path and Path(path).exists() else None


def _figures(trainer: Any, path: Path) -> str:
    """A checkpoint's step, its validation's figures where it had one, and its path."""
    step = reading.read(path)["global_step"]
    lines = next((callback for callback in trainer.callbacks if isinstance(callback, ValidationLines)), None)
    known = [] if lines is None else [figures for figures in (lines.best, lines.latest) if figures.get("step") == step]
    return f"{figures_line(known[0]) if known else f'step {step:,}'} ({path})"


def _commands(trainer: Any, best: Path, last: Path, is_complete: bool) -> list[str]:
    """What a user does next: test, generate, train on."""
    best_path, last_path = shlex.quote(str(best)), shlex.quote(str(last))
    generate = (
        [f'llp generate --ckpt_path {best_path} --prompt "…"'] if hasattr(trainer.datamodule, "tokenizer") else []
    )
    longer = (
        f" --trainer.max_steps {2 * trainer.max_steps}"
        if trainer.max_steps > 0
        else f" --trainer.max_epochs {2 * trainer.max_epochs}"
    )
    return [
        f"llp test --ckpt_path {best_path}",
        *([f"llp consolidate {best_path}"] if best.is_dir() else generate),
        f"llp fit --ckpt_path {last_path}{longer if is_complete else ''}",
    ]
