"""What a checkpoint says of itself, how it is opened, and whether it fits a model."""

import hashlib
import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch.optim import Optimizer

from llp.errors import SettingError


def architecture(model: LightningModule) -> str:
    """The shortest path at which the model's class can be imported: `llp.LLP`, wherever its file lies.

    A configuration names it so too.
    """
    module, name = type(model).__module__, type(model).__qualname__
    parts = module.split(".")
    packages = (".".join(parts[:n]) for n in range(1, len(parts)))
    home = next((path for path in packages if getattr(import_module(path), name, None) is type(model)), module)
    return f"{home}.{name}"


def describe(model: LightningModule, data: Any) -> dict[str, Any]:
    """What a checkpoint says beside its weights: `architecture`, `seed` of the training, `tokenizer_fingerprint`.

    Also the windows that an optimizer step trains on, over all ranks, and their length, for `training_record`.
    """
    seed = os.environ.get("PL_GLOBAL_SEED")  # where Lightning's `seed_everything` leaves it
    description = {
        "architecture": architecture(model),
        "seed": None if seed is None else int(seed),
        "tokenizer_fingerprint": None,
    }
    if hasattr(data, "tokenizer"):
        trainer = model.trainer
        description["tokenizer_fingerprint"] = data.tokenizer.fingerprint
        description["windows_per_step"] = data.batch_size * trainer.world_size * trainer.accumulate_grad_batches
        description["training_window_len"] = data.window_len
    return description


def training_record(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """How a checkpoint's weights were trained, for reports; None where it does not say.

    `step` is the number of optimizer steps, each on `windows_per_step` windows of `training_window_len` tokens;
    `trained_tokens` is the number of positions with a loss so far, `training_seconds` the time without validations.
    """
    metrics = checkpoint.get("callbacks", {}).get("RunMetrics", {})
    return {
        "step": checkpoint["global_step"],
        "seed": checkpoint["seed"],
        "trained_tokens": metrics.get("tokens"),
        "windows_per_step": checkpoint.get("windows_per_step"),
        "training_window_len": checkpoint.get("training_window_len"),
        "training_seconds": metrics.get("seconds"),
    }


def name_optimizer_states(states: list[dict[str, Any]], optimizers: list[Optimizer], model: LightningModule) -> None:
    """Key the optimizers' states by their parameters' names, in place.

    Numbers mean another order to each strategy (that of the optimizer's groups, or of the model); names don't.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for state, optimizer in zip(states, optimizers, strict=True):
        if not state:  # another rank has it
            continue
        new_names: dict[Any, str] = {}
        for saved, group in zip(state["param_groups"], optimizer.param_groups, strict=True):
            new = [names[id(parameter)] for parameter in group["params"]]
            new_names.update(zip(saved["params"], new, strict=True))
            saved["params"] = new
        state["state"] = {new_names[key]: value for key, value in state["state"].items()}


def read(path: str | Path) -> dict[str, Any]:
    """Open a checkpoint without reading its weights into memory; of a sharded one all but weights and optimizer.

    Raises:
        SettingError: If there is no such file, or it is truncated, or no checkpoint of this project.
    """
    path = Path(path)
    if not path.exists():
        raise SettingError("ckpt_path", path, f"there is no such file; {_another_than(path)}")
    try:
        checkpoint = _load(path)
    except Exception as error:  # torch raises what its unpickler and its zip reader happen to meet
        remedy = f"the file is truncated or no checkpoint ({str(error).splitlines()[0]}); {_another_than(path)}"
        raise SettingError("ckpt_path", path, remedy) from error
    expected = {"architecture", "hyper_parameters"} | (set() if path.is_dir() else {"state_dict"})
    if not isinstance(checkpoint, dict) or not expected <= checkpoint.keys():
        remedy = f"the file was not written by `llp fit`; {_another_than(path)}"
        raise SettingError("ckpt_path", path, remedy)
    return checkpoint


def _load(path: Path) -> Any:
    file = path / "meta.pt" if path.is_dir() else path
    return torch.load(file, map_location="cpu", weights_only=True, mmap=True)


def _another_than(path: Path) -> str:
    """The remedy for a checkpoint that can't be used: the newest whole one beside it."""
    other = next((other for other in newest_first(path.parent) if other != path), None)
    return "give the path of a checkpoint" if other is None else f"the newest whole one beside it is {other}"


def newest_first(folder: Path) -> Iterator[Path]:
    """The whole checkpoints of a run's `checkpoints/`, the furthest trained first; of equals the last written."""
    steps = {}
    for path in folder.glob("[!.]*.ckpt"):
        if not path.is_symlink():
            try:
                steps[path] = (_load(path)["global_step"], path.stat().st_mtime)
            except Exception:  # truncated or foreign, see `read`
                continue
    yield from sorted(steps, key=lambda path: steps[path], reverse=True)


def require_one_file(path: str | Path) -> None:
    """Raise a `SettingError` for a sharded checkpoint, where only a single file will do."""
    if Path(path).is_dir():
        remedy = f"it is sharded; make one file of it with `llp consolidate {path}`"
        raise SettingError("ckpt_path", path, remedy)


def check_fits(checkpoint: dict[str, Any], model: LightningModule) -> None:
    """Raise a `SettingError` unless the checkpoint holds weights for this very architecture, vocabulary and size."""
    if "architecture" not in checkpoint:
        raise SettingError("ckpt_path", "(loaded)", "the checkpoint was not written by `llp fit`; give one that was")
    ours, theirs = architecture(model), checkpoint["architecture"]
    if ours != theirs:
        raise SettingError("model.class_path", ours, f"the checkpoint holds a {theirs}; name that class")
    hparams = checkpoint["hyper_parameters"]
    for name in ("n_heads", "tie_embeddings"):  # these change the model, but no weight's name or shape
        if model.hparams[name] != hparams[name]:
            raise SettingError(f"model.init_args.{name}", model.hparams[name], f"the checkpoint has {hparams[name]}")
    if model.hparams["vocab_size"] != hparams["vocab_size"]:
        remedy = f"the checkpoint has {hparams['vocab_size']}; use the tokenizer settings of its run"
        raise SettingError("vocab_size", model.hparams["vocab_size"], remedy)
    if dict(model.hparams) == hparams:
        return
    shapes, stored = _shapes(dict(model.hparams), model), _shapes(hparams, model)
    for name in [*stored, *shapes]:
        if shapes.get(name) != stored.get(name):
            changed = [key for key, value in hparams.items() if model.hparams.get(key) != value]
            raise SettingError(
                ", ".join(f"model.init_args.{key}" for key in changed),
                ", ".join(str(model.hparams.get(key)) for key in changed),
                f"the checkpoint has {', '.join(str(hparams[key]) for key in changed)}, and other weights ({name})",
            )


def check_tokenizer(checkpoint: dict[str, Any], data: Any) -> None:
    """Raise a `SettingError` unless the data's tokenizer is the one that the checkpoint was trained with."""
    theirs = checkpoint.get("tokenizer_fingerprint")
    if theirs is not None and hasattr(data, "tokenizer") and data.tokenizer.fingerprint != theirs:
        remedy = (
            f"the checkpoint was trained with tokenizer {theirs}; use the text and the tokenizer settings of its run"
        )
        raise SettingError("data.init_args.tokenizer", data.tokenizer.fingerprint, remedy)


def _shapes(hparams: dict[str, Any], model: LightningModule) -> dict[str, torch.Size]:
    """Names and shapes of the weights that a model of this class has with the given hyperparameters."""
    with torch.device("meta"):
        twin = type(model)(**hparams)
        twin.configure_model()
    return {name: weight.shape for name, weight in twin.state_dict().items()}


def sha256(path: str | Path) -> str:
    """Hash of a checkpoint: of the file, or of all files in a sharded checkpoint's folder, in the order of names."""
    path = Path(path)
    digest = hashlib.sha256()
    for file in sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]:
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                digest.update(block)
    return digest.hexdigest()
