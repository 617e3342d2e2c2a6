"""What a training run leaves behind of itself in one small file: `run.json` in its folder."""

import math
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from llp.atomic_files import json_with_digest, whole_file
from llp.checkpoints import reading, settings_history
from llp.signals import Stopped
from llp.training.finite_guard import NotFiniteError
from llp.training.metrics import run_metrics
from llp.training.run_length import total_steps
from llp.training.software import git_commit, versions
from llp.training.start_report import device_name
from llp.training.validation_lines import ValidationLines


class RunRecord(Callback):
    """Keeps `run.json`: how far a run is, what it took, and the figures of its validations.

    Written where training starts and ends, and after each validation; whole or not at all. `state` in it is `running`,
    `finished`, `stopped` (by a signal), `diverged` (ended by `FiniteGuard`) or `failed`; that of a process that was
    killed stays `running`. It needs a `LanguageModel`, and `ValidationLines` before it for the figures.
    """

    def __init__(self) -> None:
        self._path: Path | None = None
        self._total_steps: int | None = None
        self._software: dict[str, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = trainer.log_dir  # on every rank: it is broadcast
        self._total_steps = total_steps(trainer)
        if folder is not None and trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._path = Path(folder) / "run.json"
            self._software = {"commit": git_commit(), "versions": versions()}
        self._write(trainer, pl_module, "running")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._write(trainer, pl_module, "running")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, pl_module, "finished")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        with suppress(OSError):  # it may be what has ended the run
            self._write(trainer, pl_module, _state(exception))

    def _write(self, trainer: Any, model: Any, state: str) -> None:
        if self._path is None:
            return
        validations = next(callback for callback in trainer.callbacks if isinstance(callback, ValidationLines))
        metrics = run_metrics(trainer)
        record = {
            "architecture": reading.class_path(type(model)),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "state": state,
            "step": trainer.global_step,
            "total_steps": self._total_steps,
            "trained_tokens": metrics.tokens,
            **settings_history.batch_of(settings_history.settings_of(trainer, model, trainer.datamodule)),
            "training_seconds": metrics.seconds,
            "device": device_name(trainer, model),
            "threads": torch.get_num_threads(),
            "best_validation": _finite(validations.best),
            "validations": [_finite(figures) for figures in validations.curve],
            "fingerprints": model.fingerprints,
            **self._software,
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(self._path, keeps_older=False) as temporary:
            temporary.write_text(json_with_digest(record), encoding="utf-8")


def _state(exception: BaseException) -> str:
    """What ended a run."""
    if isinstance(exception, Stopped):
        return "stopped"
    return "diverged" if isinstance(exception, NotFiniteError) else "failed"


def _finite(figures: dict[str, Any]) -> dict[str, Any] | None:
    """The figures as JSON can hold them: null where they are not finite, or there are none yet."""
    return {name: value if math.isfinite(value) else None for name, value in figures.items()} or None
