"""What a run records about itself in `run.json`, and which software computes."""

import math
import platform
import subprocess
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any, TypedDict, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from llp.atomic_files import json_with_digest, write_whole
from llp.checkpoints import reading, settings_history
from llp.lightning_internals import find_callback, untyped
from llp.signals import Stopped
from llp.training.console import Validation, ValidationLines, device_name
from llp.training.guards import NotFiniteError
from llp.training.metrics import StepOutput, run_metrics, total_steps
from llp.training.progress import Moments
from llp.training_module import TrainingModule
from llp.version import __version__

_PACKAGES = ("torch", "lightning", "torchmetrics", "datasets", "sentencepiece", "numpy")


class Software(TypedDict):
    """Which software computes."""

    commit: str | None
    versions: dict[str, str]


class RunRecord(Callback):
    """Writes `run.json`: how far a run is, what it took, and the metrics of its validations.

    It is written when training starts and ends, each minute and each tenth of the run, and after each validation, whole
    or not at all. `state` is `running`, `finished`, `stopped` (by a signal), `diverged` (ended by `FiniteGuard`) or
    `failed`; after a kill it remains `running`. The metrics come from `ValidationLines`, which must precede this
    callback.
    """

    def __init__(self) -> None:
        self._path: Path | None = None
        self._total_steps: int | None = None
        self._software = Software(commit=None, versions={})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = trainer.log_dir  # on every rank: it is broadcast
        self._total_steps = total_steps(trainer)
        self._moments = Moments(self._total_steps, trainer.global_step)
        if folder is not None and trainer.is_global_zero and not untyped(trainer).fast_dev_run:
            self._path = Path(folder) / "run.json"
            self._software = Software(commit=git_commit(), versions=versions())
        self._write(trainer, pl_module, "running")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: StepOutput, batch: Any, batch_idx: int
    ) -> None:
        if self._path is not None and self._moments.has_come(trainer.global_step):
            self._write(trainer, pl_module, "running")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._write(trainer, pl_module, "running")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, pl_module, "finished")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        state = "diverged" if isinstance(exception, NotFiniteError) else "failed"
        with suppress(OSError):  # it may be what has ended the run
            self._write(trainer, pl_module, "stopped" if isinstance(exception, Stopped) else state)

    def _write(self, trainer: Trainer, pl_module: LightningModule, state: str) -> None:
        if self._path is None:
            return
        model, metrics = cast(TrainingModule, pl_module), run_metrics(trainer)
        validations = cast(ValidationLines, find_callback(trainer, ValidationLines))
        settings = settings_history.settings_of(trainer, model, untyped(trainer).datamodule)
        record = {
            "architecture": reading.class_path(type(model)),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "state": state,
            "step": trainer.global_step,
            "total_steps": self._total_steps,
            "trained_tokens": metrics.tokens,
            **settings_history.batch_of(settings),
            "training_seconds": metrics.seconds,
            "device": device_name(trainer, model),
            "threads": torch.get_num_threads(),
            "best_validation": _finite(validations.best),
            "validations": [_finite(validation) for validation in validations.curve],
            "fingerprints": model.fingerprints,
            **self._software,
        }
        write_whole(self._path, json_with_digest(record))


def _finite(validation: Validation) -> dict[str, float | None] | None:
    """The metrics of a validation as JSON can hold them: null where not finite, or instead of no validation."""
    return {name: value if math.isfinite(value) else None for name, value in validation.items()} or None


def versions() -> dict[str, str]:
    """The versions of Python, of the running source of `llp`, and of the packages that metrics depend on."""
    installed = {name: metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), "llp": __version__, **installed}


def git_commit() -> str | None:
    """The commit of the running source tree, followed by `-dirty` if files differ from it; None outside git."""
    try:
        # Fails if this file doesn't belong to the repository, as in a copy installed inside somebody else's.
        _git("ls-files", "--error-unmatch", Path(__file__).name)
        return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    folder = Path(__file__).parent
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()
