"""What a run prints: its first screen, a line for each validation, and its last screen."""

import inspect
import os
import shlex
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.trainer.states import TrainerFn
from tqdm import tqdm

from llp.checkpoints import reading
from llp.checkpoints.callback import run_checkpoint
from llp.checkpoints.settings_history import seed
from llp.lightning_internals import find_callback, untyped
from llp.training.metrics import run_metrics, total_steps, validation_metrics
from llp.training.run_control import InitialWeights
from llp.training.throughput import training_window
from llp.training_module import TrainingModule

if TYPE_CHECKING:
    from datamodules.base import LanguageDataModule

# The first screen


class StartReport(Callback):
    """Prints what is trained on what before the first step, also of a resumed run."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = trainer.log_dir  # on every rank: it is broadcast
        if trainer.is_global_zero:
            print(start_report(trainer, cast(TrainingModule, pl_module), folder), flush=True)


def start_report(trainer: Trainer, model: TrainingModule, folder: str | None) -> str:
    """The first screen of a run; `folder` is the run's."""
    data = cast("LanguageDataModule", untyped(trainer).datamodule)
    window, step, total = training_window(model, data), trainer.global_step, total_steps(trainer)
    n_windows = data.batch_size * trainer.world_size * trainer.accumulate_grad_batches
    per_step = n_windows * window.n_trained
    flops = window.flops(model.decoder) / window.n_trained / 1e6
    settings = ", ".join(f"{name}={value}" for name, value in changed_settings(model).items())
    before = f", after {window.burn_in:,} that are read without one" if window.burn_in else ""
    tokens = "" if total is None else f", {run_metrics(trainer).tokens + (total - step) * per_step:,} trained tokens"
    length = "steps without an end" if total is None else f"{total:,} steps{tokens}"
    rows = [
        ("settings", f"{settings}; all else as in {reading.class_path(type(model))}"),
        ("window", f"{window.length:,} tokens, {window.n_trained:,} of them with a loss{before}"),
        ("step", f"{n_windows:,} windows: {per_step:,} trained tokens at {flops:,.3f} MFLOP each"),
        ("run", f"{f'resumed from step {step:,} of ' if step else ''}{length}; seed {seed()}"),
        ("device", f"{device_name(trainer, model)}, precision {trainer.precision}"),
    ]
    if (initial := find_callback(trainer, InitialWeights)) is not None:
        rows.append(("weights", f"those of step {initial.origin['step']:,} in {initial.origin['checkpoint']}"))
    if folder is not None:
        rows.append(("folder", os.path.relpath(folder)))
    n_parameters, n_layers = sum(parameter.numel() for parameter in model.parameters()), len(model.geometry.layers)
    title = f"{type(model).__name__} on {type(data).__name__}: {n_parameters:,} parameters in {n_layers} layers"
    return text_block(title, [(label, textwrap.fill(text, 100, break_on_hyphens=False)) for label, text in rows])


def changed_settings(model: LightningModule) -> dict[str, Any]:
    """The hyperparameters of a model that differ from the defaults of its class, or have no default."""
    defaults: dict[str, Any] = {}
    for base in reversed(type(model).__mro__):
        if "__init__" in vars(base):
            parameters = inspect.signature(base.__init__).parameters  # type: ignore[misc]
            defaults |= {name: parameter.default for name, parameter in parameters.items()}
    return {
        name: value for name, value in model.hparams.items() if value != defaults.get(name, inspect.Parameter.empty)
    }


def device_name(trainer: Trainer, model: LightningModule) -> str:
    """The device, `cpu (2 threads)` or the name of the GPU, with the number of devices and the strategy."""
    n_devices, device = trainer.world_size, model.device
    n_threads, n_nodes = torch.get_num_threads(), trainer.num_nodes
    cpu = f"{device.type} ({n_threads} thread{'s' * (n_threads > 1)})"
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else cpu
    if n_devices > 1:
        name = f"{n_devices} x {name} on {n_nodes} node{'s' * (n_nodes > 1)}, {type(trainer.strategy).__name__}"
    return name


# Validations

_LABELS = {"loss": "validation loss", "bits_per_byte": "bits per byte", "accuracy": "accuracy"}
Validation = dict[str, float]
"""The metrics of a validation, its `step`, and whether it is `complete`: of the whole split."""


class ValidationLines(Callback):
    """Prints a line for each validation within a run: its step and metrics, and whether it is the best so far.

    The run's checkpoint callback decides what is best. Without a progress bar (`enable_progress_bar=False`) nothing is
    printed.

    Attributes:
        curve: All validations of the run, including those before a resume.
        best: The best of them; empty before the first.
    """

    def __init__(self) -> None:
        self.curve: list[Validation] = []
        self.best: Validation = {}

    @property
    def latest(self) -> Validation:
        return self.curve[-1] if self.curve else {}

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "curve": self.curve}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.curve = state_dict["best"], state_dict["curve"]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        n_scored, expected = cast(TrainingModule, pl_module).score.scored()
        metrics = {"step": trainer.global_step, "complete": n_scored == expected, **validation_metrics(trainer)}
        before = [entry for entry in self.curve if entry["step"] < trainer.global_step]  # a resume may validate again
        self.curve = [*before, metrics]
        is_best = _is_best(trainer)
        if is_best:
            self.best = self.latest
        bar = trainer.progress_bar_callback
        if bar is not None and trainer.is_global_zero:
            bar.print(f"{validation_line(self.latest)}{', the best so far' if is_best else ''}")


def validation_line(metrics: Validation) -> str:
    """The step of a validation and its metrics, and whether they are of a part of the split."""
    known = [f"{label} {metrics[name]:.4f}" for name, label in _LABELS.items() if name in metrics]
    part = [] if metrics["complete"] else ["on a part of the split"]
    return f"step {metrics['step']:,}: {', '.join([*known, *part])}"


def _is_best(trainer: Trainer) -> bool:
    """Whether the checkpoint callback, which runs after this one, will take the newest metrics for the best."""
    checkpoint = run_checkpoint(trainer)
    if checkpoint is None or checkpoint.monitor not in trainer.callback_metrics:
        return False
    value, best = trainer.callback_metrics[checkpoint.monitor], checkpoint.best_model_score
    if best is None:
        return not bool(torch.isnan(value))
    return bool(value < best if checkpoint.mode == "min" else value > best)


# The last screen


class RunSummary(Callback):
    """Prints at the end of a run how far it is, its best and last checkpoint, and the commands that follow."""

    _started: float | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._folder = trainer.log_dir  # on every rank: it is broadcast
        self._started, self._first_step = time.perf_counter(), trainer.global_step

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or self._started is None:  # there was nothing to train
            return
        step, total, metrics = trainer.global_step, total_steps(trainer), run_metrics(trainer)
        title = f"{'Finished' if total is None or step >= total else 'Ended early'}: step {step:,}"
        title += "" if total is None else f" of {total:,}"
        seconds = tqdm.format_interval(time.perf_counter() - self._started)
        effort = f"{step - self._first_step:,} steps in {seconds}, validation included; {metrics.tokens:,} tokens"
        rate = metrics.tokens / metrics.seconds
        rows = [("trained", f"{effort} in all, at {rate:,.0f} tokens/s between validations")]
        callback = run_checkpoint(trainer)
        paths = {} if callback is None else {"best": callback.best_model_path, "last": callback.last_model_path}
        existing = {label: Path(os.path.relpath(path)) for label, path in paths.items() if path and Path(path).exists()}
        rows += [(label, _checkpoint(trainer, path)) for label, path in existing.items()]
        if self._folder:
            rows.append(("folder", os.path.relpath(self._folder)))
        if "last" in existing:
            best = existing.get("best", existing["last"])
            rows.append(("next", "\n".join(_commands(trainer, best, existing["last"]))))
        print(text_block(title, rows), flush=True)


def _checkpoint(trainer: Trainer, path: Path) -> str:
    """The step of a checkpoint, its metrics if a validation was made there, and its path."""
    step, lines = reading.read(path)["global_step"], find_callback(trainer, ValidationLines)
    known = [] if lines is None else [one for one in (lines.best, lines.latest) if one.get("step") == step]
    return f"{validation_line(known[0]) if known else f'step {step:,}'} ({path})"


def _commands(trainer: Trainer, best: Path, last: Path) -> list[str]:
    """The commands that test, generate and train on."""
    best_path, last_path = shlex.quote(str(best)), shlex.quote(str(last))
    commands = [f"llp test --ckpt_path {best_path}"]
    if best.is_dir():
        commands.append(f"llp consolidate {best_path}")
    elif hasattr(untyped(trainer).datamodule, "tokenizer"):
        commands.append(f'llp generate --ckpt_path {best_path} --prompt "…"')
    is_complete = 0 < trainer.max_steps <= trainer.global_step
    longer = f" --trainer.max_steps {2 * trainer.max_steps}" if is_complete else ""
    timer = find_callback(trainer, Timer)
    if timer is not None and (left_s := timer.time_remaining()) is not None and left_s <= 0:
        minutes = int(timer.time_elapsed() / 30) + 1  # twice as long
        longer += f" --trainer.max_time {minutes // 1440:02}:{minutes // 60 % 24:02}:{minutes % 60:02}:00"
    return [*commands, f"llp fit --ckpt_path {last_path}{longer}"]


# Text


def text_block(title: str, rows: Sequence[tuple[str, str]]) -> str:
    """A title, and below it the label and the text of each row; all lines of the texts start in one column."""
    indent = 4 + max((len(label) for label, _ in rows), default=0)
    lines = [title]
    for label, text in rows:
        first, *others = text.splitlines()
        lines += [f"  {label:<{indent - 2}}{first}", *(f"{'':<{indent}}{other}" for other in others)]
    return "\n".join(lines)
