"""Checkpoints on disk: written whole or not at all, what one says of itself, and whether it fits a model."""

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.optim import Optimizer

from llp.errors import SettingError


def architecture(model: LightningModule) -> str:
    """The class path under which a configuration names the model's class."""
    return f"{type(model).__module__}.{type(model).__qualname__}"


def describe(model: LightningModule, data: Any) -> dict[str, Any]:
    """What a checkpoint says beside its weights: `architecture`, `seed` of the training, `tokenizer_fingerprint`."""
    seed = os.environ.get("PL_GLOBAL_SEED")  # where Lightning's `seed_everything` leaves it
    return {
        "architecture": architecture(model),
        "seed": None if seed is None else int(seed),
        "tokenizer_fingerprint": data.tokenizer.fingerprint if hasattr(data, "tokenizer") else None,
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


def consolidate(folder: Path) -> Path:
    """Make one file of a sharded checkpoint, beside it, that any strategy loads; it must fit in memory.

    Raises:
        SettingError: If there is no such checkpoint.
    """
    if not folder.is_dir():
        raise SettingError("FOLDER", folder, "there is no such folder; give that of a sharded checkpoint")
    checkpoint = read(folder)
    path = folder.with_name(f"{folder.stem}-consolidated{folder.suffix}")
    shards = unfinished(path.with_suffix(".weights"))
    dcp_to_torch_save(folder, shards)
    weights = torch.load(shards, weights_only=True, mmap=True)
    checkpoint["state_dict"] = weights["state_dict"]
    checkpoint["optimizer_states"] = [value for key, value in sorted(weights.items()) if key.startswith("optimizer_")]
    torch.save(checkpoint, unfinished(path))
    publish(path)
    shards.unlink()
    return path


def unfinished(path: Path) -> Path:
    """Where a checkpoint is written before it is whole."""
    return path.with_name(f".{path.name}.unfinished")


def _replaced(path: Path) -> Path:
    """Where the older one is while another takes its place: a folder can't be replaced in one step."""
    return path.with_name(f".{path.name}.replaced")


def publish(path: Path) -> None:
    """Put the whole checkpoint that was written to `unfinished(path)` in its place."""
    if path.is_dir() or (path.exists() and unfinished(path).is_dir()):
        path.rename(_replaced(path))
    unfinished(path).replace(path)
    _remove(_replaced(path))


def link(path: Path, name: Path) -> None:
    """Make `name` a link to a checkpoint in the same folder, in one step."""
    _remove(unfinished(name))
    unfinished(name).symlink_to(path.name)
    unfinished(name).replace(name)


def tidy(folder: Path) -> None:
    """Remove what a killed process left unfinished in a run's `checkpoints/`; nothing that was ever whole is lost."""
    for replaced, path in _unreplaced(folder):
        replaced.rename(path)
    for leftover in chain(folder.glob(".*.replaced"), folder.glob(".*.unfinished")):
        _remove(leftover)


def wait_until_tidy(folder: Path) -> None:
    """Wait, in the other processes, until all checkpoints that `tidy` restores are in their places."""
    while _unreplaced(folder):
        time.sleep(0.1)


def _unreplaced(folder: Path) -> list[tuple[Path, Path]]:
    """Checkpoints that were moved aside for others which never came, and the places that they had."""
    pairs = [
        (replaced, folder / replaced.name.removeprefix(".").removesuffix(".replaced"))
        for replaced in folder.glob(".*.replaced")
    ]
    return [(replaced, path) for replaced, path in pairs if not path.exists()]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


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


def run_folder(path: str | Path) -> Path:
    """The folder of the run that wrote a checkpoint: the one above `checkpoints/`, else the checkpoint's own."""
    parent = Path(path).resolve().parent
    return parent.parent if parent.name == "checkpoints" else parent


def keep_older(path: Path) -> None:
    """Give a file that is there already a numbered name, so that another can take its place."""
    if path.exists():
        number = 1
        while (older := path.with_name(f"{path.stem}-{number}{path.suffix}")).exists():
            number += 1
        path.rename(older)
