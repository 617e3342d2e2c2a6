"""What is about to be trained, on what, and where: the first screen of a run."""

import inspect
import math
import os
import shlex
import textwrap
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tqdm import tqdm

from llp.checkpoints.reading import class_path
from llp.checkpoints.settings_history import seed
from llp.training.initial_weights import InitialWeights
from llp.training.metrics import run_metrics
from llp.training.run_length import total_steps
from llp.training.text_block import text_block, with_unit
from llp.training.throughput import compute_dtype, peak_rate
from llp.training.training_window import TrainingWindow, training_window


class StartReport(Callback):
    """Prints what is trained on what before the first step, also of a resumed run. It needs a `LanguageModel`."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = trainer.log_dir  # on every rank: it is broadcast
        if trainer.is_global_zero:
            print(start_report(trainer, pl_module, folder), flush=True)


def start_report(trainer: Any, model: Any, folder: str | None) -> str:
    """The first screen, of a trainer that is about to train a `LanguageModel`; `folder` is the run's."""
    data = trainer.datamodule
    window = training_window(model, data)
    per_step = data.batch_size * trainer.world_size * trainer.accumulate_grad_batches * window.n_trained
    flops = window.flops(model.decoder) / window.n_trained
    rows = [
        ("settings", _settings(model)),
        ("window", _window(model, window)),
        ("step", f"{_batch(trainer, data.batch_size)}: {per_step:,} trained tokens at {with_unit(flops, 'FLOP')} each; "
                 f"learning rate up to {model.hparams['learning_rate']:g}"),
        ("run", f"{_length(trainer, per_step)}; {_validation(trainer)}; seed {seed()}"),
        ("device", _device(trainer, model)),
    ]  # fmt: skip
    rows = [(label, textwrap.fill(text, width=100, break_on_hyphens=False)) for label, text in rows]
    rows += [("weights", f"those of step {origin['step']:,} in {origin['checkpoint']}") for origin in _origins(trainer)]
    if folder is not None:
        rows.append(("folder", os.path.relpath(folder)))
    if isinstance(trainer.logger, TensorBoardLogger):
        runs = os.path.relpath(Path(trainer.logger.log_dir).parent)
        rows.append(("watch", f"tensorboard --logdir {shlex.quote(runs)}"))
    n_parameters = sum(parameter.numel() for parameter in model.parameters())
    title = f"{type(model).__name__} on {type(data).__name__}: {n_parameters:,} parameters in {model.n_layers} layers"
    return text_block(title, rows)


def changed_settings(model: LightningModule) -> dict[str, Any]:
    """The hyperparameters of a model that are not what its class takes unless told, or that it must be told."""
    defaults: dict[str, Any] = {}
    for base in reversed(type(model).__mro__):
        if "__init__" in vars(base):
            parameters = inspect.signature(base.__init__).parameters  # type: ignore[misc]
            defaults |= {name: parameter.default for name, parameter in parameters.items()}
    unknown = inspect.Parameter.empty
    return {name: value for name, value in model.hparams.items() if value != defaults.get(name, unknown)}


def _settings(model: LightningModule) -> str:
    changed = ", ".join(f"{name}={value}" for name, value in changed_settings(model).items())
    return f"{changed}; all else as in {class_path(type(model))}"


def _window(model: Any, window: TrainingWindow) -> str:
    """What a training window is to the model: where it has a loss, and from how much context."""
    burn_in, n, n_trained, has_labels = window
    n_out = min(n, model.geometry.positions_out(window.n_read))
    contexts = model.geometry.context_lens(window.n_read)[window.n_read - n_out :]
    where = "each" if n_trained == n else f"the last {n_trained:,}"
    where = _plural(n_trained, "label") if has_labels else where
    before = f" after {burn_in:,} that are read without one" if burn_in else ""
    context = f"{int(contexts.min()):,} to {int(contexts.max()):,}" if burn_in else f"up to {int(contexts.max()):,}"
    return f"{n:,} tokens, a loss at {where}{before}, from a context of {context} tokens"


def _batch(trainer: Any, batch_size: int) -> str:
    """The windows of an optimizer step, and how they come together."""
    n_devices, n_batches = trainer.world_size, trainer.accumulate_grad_batches
    windows = _plural(batch_size * n_devices * n_batches, "window")
    parts = [f"{batch_size} at a time"] if n_devices * n_batches > 1 else []
    parts += [f"on {n_devices} devices"] if n_devices > 1 else []
    parts += [f"{n_batches} times"] if n_batches > 1 else []
    return f"{windows} ({', '.join(parts)})" if parts else windows


def _length(trainer: Any, per_step: int) -> str:
    """How long the run is, and where it stands."""
    step, total, done = trainer.global_step, total_steps(trainer), run_metrics(trainer).tokens
    if total is None:
        return f"resumed from step {step:,}, without an end" if step else "without an end"
    tokens = done + (total - step) * per_step
    resumed = f"resumed from step {step:,} of {total:,}" if step else _plural(total, "step")
    return f"{resumed}, {tokens:,} trained tokens in all"


def _validation(trainer: Any) -> str:
    """When the run is validated, and whether on all of its text."""
    limit, interval, seconds = trainer.limit_val_batches, trainer.val_check_batch, trainer._val_check_time_interval
    times, accumulated = [], trainer.accumulate_grad_batches
    if seconds is not None:
        times.append(f"every {tqdm.format_interval(seconds)}")
    elif interval <= (total_steps(trainer) or math.inf) * accumulated:
        times.append(f"every {_plural(interval // accumulated, 'step')}")
    times += ["at the end"] if trainer.max_steps > 0 else []  # see `StepValidation`
    if not sum(trainer.num_val_batches) or not times:
        return "never validated"
    return " ".join(["validated", *([f"with limit_val_batches={limit}"] if limit != 1.0 else []), " and ".join(times)])


def _origins(trainer: Any) -> list[dict[str, Any]]:
    """The checkpoint whose weights a new run starts from, if any."""
    return [callback.origin for callback in trainer.callbacks if isinstance(callback, InitialWeights)]


def device_name(trainer: Any, model: LightningModule) -> str:
    """On what the run computes: `cpu (2 threads)`, or the name of the GPU; how many there are, and the strategy."""
    n_devices, device = trainer.world_size, model.device
    is_cuda = device.type == "cuda"
    threads = _plural(torch.get_num_threads(), "thread")
    name = torch.cuda.get_device_name(device) if is_cuda else f"{device.type} ({threads})"
    if n_devices > 1:
        name = f"{n_devices} x {name} on {_plural(trainer.num_nodes, 'node')}, {type(trainer.strategy).__name__}"
    return name


def _device(trainer: Any, model: LightningModule) -> str:
    """On what the run computes, and how fast that is."""
    rate = peak_rate(model.device, compute_dtype(str(trainer.precision)))
    source = "measured" if rate.is_measured else "its maker's figure"
    each = " each" if trainer.world_size > 1 else ""
    products = f"matrix products at {with_unit(rate.flops, 'FLOP/s')}{each}, {source}"
    return f"{device_name(trainer, model)}, precision {trainer.precision}; {products}"


def _plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
