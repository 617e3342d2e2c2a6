"""What a run prints: its first screen, a line for each validation, and its last screen."""

import inspect
import math
import os
import shlex
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from tqdm import tqdm

from llp.checkpoints import reading
from llp.checkpoints.callback import RunCheckpoint, run_checkpoint
from llp.checkpoints.settings_history import seed
from llp.lightning_internals import find_callback, untyped, validation_interval_s
from llp.training.metrics import run_metrics, total_steps, validation_metrics
from llp.training.run_control import InitialWeights
from llp.training.throughput import TrainingData, TrainingWindow, compute_dtype, peak_rate, training_window
from llp.training_module import TrainingModule

Rows = list[tuple[str, str]]

# The first screen


class StartReport(Callback):
    """Prints what is trained on what before the first step, also of a resumed run."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = trainer.log_dir  # on every rank: it is broadcast
        if trainer.is_global_zero:
            print(start_report(trainer, cast(TrainingModule, pl_module), folder), flush=True)


def start_report(trainer: Trainer, model: TrainingModule, folder: str | None) -> str:
    """The first screen of a run; `folder` is the run's."""
    data = cast(TrainingData, untyped(trainer).datamodule)
    window = training_window(model, data)
    n_windows = data.batch_size * trainer.world_size * trainer.accumulate_grad_batches
    per_step = n_windows * window.n_trained
    flops = with_unit(window.flops(model.decoder) / window.n_trained, "FLOP")
    rate = f"learning rate up to {model.hparams['learning_rate']:g}"
    settings = ", ".join(f"{name}={value}" for name, value in changed_settings(model).items())
    rows = [
        ("settings", f"{settings}; all else as in {reading.class_path(type(model))}"),
        ("window", _window(model, window)),
        ("step", f"{_batch(trainer, data.batch_size)}: {per_step:,} trained tokens at {flops} each; {rate}"),
        ("run", f"{_length(trainer, per_step)}; {_validation(trainer)}; seed {seed()}"),
        ("device", _device(trainer, model)),
    ]
    rows = [(label, textwrap.fill(text, width=100, break_on_hyphens=False)) for label, text in rows]
    if (initial := find_callback(trainer, InitialWeights)) is not None:
        rows.append(("weights", f"those of step {initial.origin['step']:,} in {initial.origin['checkpoint']}"))
    if folder is not None:
        rows.append(("folder", os.path.relpath(folder)))
    if isinstance(trainer.logger, TensorBoardLogger):
        runs = os.path.relpath(Path(trainer.logger.log_dir).parent)
        rows.append(("watch", f"tensorboard --logdir {shlex.quote(runs)}"))
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    title = f"{type(model).__name__} on {type(data).__name__}: {n_parameters:,} parameters in {len(model.geometry.layers)} layers"
    return text_block(title, rows)


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


def _window(model: TrainingModule, window: TrainingWindow) -> str:
    """Where a training window has a loss, and from how much context."""
    burn_in, n, n_trained, has_labels = window
    n_out = min(n, model.geometry.positions_out(window.n_read))
    contexts = model.geometry.context_lens(window.n_read)[window.n_read - n_out :]
    where = "each" if n_trained == n else f"the last {n_trained:,}"
    where = _plural(n_trained, "label") if has_labels else where
    before = f" after {burn_in:,} that are read without one" if burn_in else ""
    context = f"{int(contexts.min()):,} to {int(contexts.max()):,}" if burn_in else f"up to {int(contexts.max()):,}"
    return f"{n:,} tokens, a loss at {where}{before}, from a context of {context} tokens"


def _batch(trainer: Trainer, batch_size: int) -> str:
    """The windows of an optimizer step, and how they are divided."""
    n_devices, n_batches = trainer.world_size, trainer.accumulate_grad_batches
    windows = _plural(batch_size * n_devices * n_batches, "window")
    parts = [f"{batch_size} at a time"] if n_devices * n_batches > 1 else []
    parts += [f"on {n_devices} devices"] if n_devices > 1 else []
    parts += [f"{n_batches} times"] if n_batches > 1 else []
    return f"{windows} ({', '.join(parts)})" if parts else windows


def _length(trainer: Trainer, per_step: int) -> str:
    """How long the run is, and where it stands."""
    step, total = trainer.global_step, total_steps(trainer)
    if total is None:
        return f"resumed from step {step:,}, without an end" if step else "without an end"
    tokens = run_metrics(trainer).tokens + (total - step) * per_step
    resumed = f"resumed from step {step:,} of {total:,}" if step else _plural(total, "step")
    return f"{resumed}, {tokens:,} trained tokens in all"


def _validation(trainer: Trainer) -> str:
    """When the run is validated, and whether on the whole split."""
    limit, interval, seconds = (
        untyped(trainer).limit_val_batches,
        trainer.val_check_batch,
        validation_interval_s(trainer),
    )
    times, accumulated = [], trainer.accumulate_grad_batches
    if seconds is not None:
        times.append(f"every {tqdm.format_interval(seconds)}")
    elif interval is not None and interval <= (total_steps(trainer) or math.inf) * accumulated:
        times.append(f"every {_plural(int(interval // accumulated), 'step')}")
    times += ["at the end"] if trainer.max_steps > 0 else []  # see `StepValidation`
    if not sum(cast(list[int], trainer.num_val_batches)) or not times:
        return "never validated"
    return " ".join(["validated", *([f"with limit_val_batches={limit}"] if limit != 1.0 else []), " and ".join(times)])


def device_name(trainer: Trainer, model: LightningModule) -> str:
    """The device, `cpu (2 threads)` or the name of the GPU, with the number of devices and the strategy."""
    n_devices, device = trainer.world_size, model.device
    threads = _plural(torch.get_num_threads(), "thread")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{device.type} ({threads})"
    if n_devices > 1:
        name = f"{n_devices} x {name} on {_plural(trainer.num_nodes, 'node')}, {type(trainer.strategy).__name__}"
    return name


def _device(trainer: Trainer, model: LightningModule) -> str:
    """The device, and how fast it is."""
    rate = peak_rate(model.device, compute_dtype(str(trainer.precision)))
    source = "measured" if rate.is_measured else "its maker's figure"
    each = " each" if trainer.world_size > 1 else ""
    products = f"matrix products at {with_unit(rate.flops, 'FLOP/s')}{each}, {source}"
    return f"{device_name(trainer, model)}, precision {trainer.precision}; {products}"


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
        if self._started is None:
            title, rows = f"Nothing to train: the run is at its end, step {step:,}", []
        else:
            state = "Finished" if is_complete or total is None else "Ended early"
            title = f"{state}: step {step:,}" + ("" if total is None else f" of {total:,}")
            rows = [("trained", self._effort(trainer, time.perf_counter() - self._started))]
        callback = run_checkpoint(trainer)
        if callback is not None:
            rows += _checkpoints(trainer, callback)
        if self._folder:
            rows.append(("folder", os.path.relpath(self._folder)))
        if callback is not None and (last := _existing(callback.last_model_path)):
            best = _existing(callback.best_model_path) or last
            rows.append(("next", "\n".join(_commands(trainer, best, last, is_complete))))
        print(text_block(title, rows), flush=True)

    def _effort(self, trainer: Trainer, seconds: float) -> str:
        """Steps and time in this process; tokens and their rate in the whole run."""
        metrics, steps = run_metrics(trainer), trainer.global_step - self._first_step
        rate = metrics.tokens / metrics.seconds
        return (
            f"{steps:,} steps in {tqdm.format_interval(seconds)}, validation included; "
            f"{metrics.tokens:,} tokens in all, at {rate:,.0f} tokens/s between validations"
        )


def _existing(path: str) -> Path | None:
    return Path(os.path.relpath(path)) if path and Path(path).exists() else None


def _checkpoints(trainer: Trainer, callback: RunCheckpoint) -> Rows:
    """The best and the last checkpoint: step, metrics if a validation was made there, and path."""
    lines, rows = find_callback(trainer, ValidationLines), []
    for label, path in (("best", _existing(callback.best_model_path)), ("last", _existing(callback.last_model_path))):
        if path is not None:
            step = reading.read(path)["global_step"]
            known = [] if lines is None else [one for one in (lines.best, lines.latest) if one.get("step") == step]
            rows.append((label, f"{validation_line(known[0]) if known else f'step {step:,}'} ({path})"))
    return rows


def _commands(trainer: Trainer, best: Path, last: Path, is_complete: bool) -> list[str]:
    """The commands that test, generate and train on."""
    best_path, last_path = shlex.quote(str(best)), shlex.quote(str(last))
    commands = [f"llp test --ckpt_path {best_path}"]
    if best.is_dir():
        commands.append(f"llp consolidate {best_path}")
    elif hasattr(untyped(trainer).datamodule, "tokenizer"):
        commands.append(f'llp generate --ckpt_path {best_path} --prompt "…"')
    unit = "steps" if trainer.max_steps > 0 else "epochs"
    longer = f" --trainer.max_{unit} {2 * getattr(trainer, f'max_{unit}')}" if is_complete else ""
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


def with_unit(value: float, unit: str) -> str:
    """Three digits and an SI prefix: 95.2e9 "FLOP/s" is "95.2 GFLOP/s"."""
    prefixes = ["", "k", "M", "G", "T", "P", "E"]
    while value >= 999.5 and len(prefixes) > 1:
        value /= 1000
        prefixes.pop(0)
    return f"{value:.3g} {prefixes[0]}{unit}"


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
