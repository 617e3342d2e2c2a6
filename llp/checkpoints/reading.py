"""How a checkpoint is opened, and whether it fits a model; the package's docstring says what it holds."""

from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule

from llp.atomic_files import file_sha256, is_exported
from llp.checkpoints import exported_folder
from llp.checkpoints.settings_history import batch_of, current
from llp.checkpoints.sharded import check_digests, check_shards
from llp.errors import SettingError, require

_REQUIRED = {"architecture", "hyper_parameters", "settings_history", "tokenizer", "config", "initialized_from"}

# Opening


def read(path: str | Path) -> dict[str, Any]:
    """Open a checkpoint without reading its weights into memory; a sharded one without weights and optimizer states.

    All of it is compared with its checksums, once per process. Nothing that the file holds is executed, neither here
    nor when torch and Lightning load it afterwards (`SECURITY.md`). An exported folder is read like a checkpoint
    without optimizer states.

    Raises:
        SettingError: If there is no such file, or it is damaged, or is not a checkpoint of this project.
    """
    path = Path(path)
    if is_exported(path):
        return exported_folder.read(path)
    if not path.exists():
        raise SettingError("ckpt_path", path, f"there is no such file; {_another_than(path)}")
    if path.is_dir() and not (path / "meta.pt").exists():
        raise SettingError("ckpt_path", path, f"there is no checkpoint in this folder; {_another_than(path)}")
    try:
        _require_whole(path)
        checkpoint = _load(path)
        if path.is_dir():
            check_shards(path)
    except Exception as error:  # torch passes on whatever its unpickler and its zip reader raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        if reason.startswith("Weights only load failed"):  # torch continues with how to execute it all the same
            reason = "it holds other things than tensors and plain values"
        remedy = f"it is damaged or is not a checkpoint ({reason}); {_another_than(path)}"
        raise SettingError("ckpt_path", path, remedy) from error
    expected = _REQUIRED | (set() if path.is_dir() else {"state_dict"})
    is_ours = isinstance(checkpoint, dict) and expected <= checkpoint.keys()
    # With `_instantiator` Lightning would let a function of the file's choice build the model.
    if not is_ours or "_instantiator" in (checkpoint["hyper_parameters"] or {}):
        remedy = f"the file was not written by `llp fit`; {_another_than(path)}"
        raise SettingError("ckpt_path", path, remedy)
    return checkpoint


def _load(path: Path) -> Any:
    file = path / "meta.pt" if path.is_dir() else path
    return torch.load(file, map_location="cpu", weights_only=True, mmap=True)


def _require_whole(path: Path) -> None:
    """Raise an error of any kind unless a checkpoint is what was written; each file is read once per process."""
    if path.is_dir():
        check_digests(path)
    else:
        stat = path.stat()
        _check_archive(path, stat.st_size, stat.st_mtime_ns)


@cache
def _check_archive(file: Path, size: int, modified: int) -> None:
    """Compare each part of a file with the CRC-32 that the file holds of it, which torch does not do."""
    with ZipFile(file) as archive:
        if (part := archive.testzip()) is not None:
            raise ValueError(f"{part} is not what was written")


def _another_than(path: Path) -> str:
    """The remedy for a checkpoint that can't be used: the newest whole one beside it."""
    other = next((other for other in newest_first(path.parent) if other != path), None)
    return "give the path of a checkpoint" if other is None else f"the newest whole one beside it is {other}"


def newest_first(folder: Path) -> Iterator[Path]:
    """The whole checkpoints in a folder that can be resumed, most steps first, and of equal steps the last written."""
    steps = {}
    for path in folder.glob("[!.]*.ckpt"):
        if not path.is_symlink():
            try:
                checkpoint = _load(path)
                if path.is_dir() or "optimizer_states" in checkpoint:  # not with `save_weights_only`
                    steps[path] = (checkpoint["global_step"], path.stat().st_mtime)
            except Exception:  # truncated or foreign, see `read`
                continue
    for path in sorted(steps, key=lambda path: steps[path], reverse=True):
        try:
            _require_whole(path)
        except Exception:
            continue
        yield path


def require_one_file(path: str | Path) -> None:
    """Raise a `SettingError` if a checkpoint is sharded, where a single file is needed."""
    if Path(path).is_dir() and not is_exported(path):
        remedy = f"it is sharded; make one file of it with `llp consolidate {path}`"
        raise SettingError("ckpt_path", path, remedy)


def sha256(path: str | Path) -> str:
    """SHA-256 of a checkpoint's file, of all files of a sharded one by name, or of an exported folder's weights."""
    path = Path(path)
    if is_exported(path):
        return file_sha256(path / exported_folder.WEIGHTS)
    return file_sha256(*sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path])


# What it holds


def class_path(cls: type) -> str:
    """The shortest path from which a class can be imported, as in a configuration: `llp.LLP`, wherever its file is."""
    parts = cls.__module__.split(".")
    packages = (".".join(parts[:n]) for n in range(1, len(parts)))
    home = next((path for path in packages if getattr(import_module(path), cls.__qualname__, None) is cls), None)
    return f"{home or cls.__module__}.{cls.__qualname__}"


def import_class(path: str, base: type = object) -> Any:
    """The class at a path that `class_path` returned.

    Raises:
        SettingError: If it can't be imported, or is not derived from `base`.
    """
    module, _, name = path.rpartition(".")
    try:
        cls = getattr(import_module(module), name, None)
    except ImportError as error:
        remedy = f"it can't be imported ({error}); add its folder to PYTHONPATH"
        raise SettingError("class_path", path, remedy) from error
    is_one = isinstance(cls, type) and issubclass(cls, base)
    require(is_one, "class_path", path, f"it is no {base.__name__}; name one")
    return cls


def stored_tokenizer(data: Any) -> dict[str, Any] | None:
    """What a checkpoint stores of the data's tokenizer, so that it needs no other file; None if there is no tokenizer.

    `start_token` is the token that a document begins with; `settings` are the arguments that the tokenizer was created
    with.
    """
    tokenizer = getattr(data, "tokenizer", None)
    if tokenizer is None:
        return None
    return {
        "class_path": class_path(type(tokenizer)),
        "settings": tokenizer.made_with or tokenizer.settings(),
        "fingerprint": tokenizer.fingerprint,
        "start_token": data.start_token(),
        # As a tensor: `weights_only` loads no bytes.
        "data": torch.from_numpy(np.frombuffer(tokenizer.serialized(), dtype=np.uint8).copy()),
    }


def restored_tokenizer(stored: dict[str, Any]) -> Any:
    """The tokenizer that `stored_tokenizer` described.

    Raises:
        SettingError: If its class can't be imported, or is no tokenizer.
    """
    cls, data = import_class(stored["class_path"]), stored["data"].numpy().tobytes()
    remedy = "it is no tokenizer; give a checkpoint that `llp fit` has written"
    require(hasattr(cls, "restored"), "class_path", stored["class_path"], remedy)
    return cls.restored(data, stored["settings"])


def training_record(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """How a checkpoint's weights were trained, for reports; None for what it does not say.

    `step` is the number of optimizer steps, each on `windows_per_step` windows of `training_window_len` tokens;
    `trained_tokens` is the number of positions with a loss so far, `training_seconds` the time without validations.
    """
    metrics = checkpoint.get("callbacks", {}).get("RunMetrics", {})
    return {
        "step": checkpoint["global_step"],
        "seed": checkpoint["seed"],
        "trained_tokens": metrics.get("tokens"),
        **batch_of(current(checkpoint["settings_history"])),
        "training_seconds": metrics.get("seconds"),
    }


# Whether it fits


def check_fits(checkpoint: dict[str, Any], model: LightningModule) -> None:
    """Raise a `SettingError` unless the checkpoint's weights are for this architecture, vocabulary and size."""
    if "architecture" not in checkpoint:
        raise SettingError("ckpt_path", "(loaded)", "the checkpoint was not written by `llp fit`; give one that was")
    ours, theirs = class_path(type(model)), checkpoint["architecture"]
    require(ours == theirs, "model.class_path", ours, f"the checkpoint is of {theirs}; use that class")
    here, there = model.hparams, checkpoint["hyper_parameters"]
    if (base := checkpoint.get("base")) is not None:
        remedy = (
            "the checkpoint's adapters belong to other weights; give the path of the model that they were trained on"
        )
        require(model.base == base, "model.init_args.path", here["path"], remedy)
    for name in ("n_heads", "tie_embeddings") if "n_heads" in there else ():  # no weight's name or shape shows them
        require(here[name] == there[name], f"model.init_args.{name}", here[name], f"the checkpoint has {there[name]}")
    remedy = f"the checkpoint has {there['vocab_size']}; use the tokenizer settings of its run"
    require(here["vocab_size"] == there["vocab_size"], "vocab_size", here["vocab_size"], remedy)
    if dict(here) == there:
        return
    our_shapes, their_shapes = shapes(dict(here), model), shapes(there, model)
    different = (name for name in [*their_shapes, *our_shapes] if our_shapes.get(name) != their_shapes.get(name))
    if (weight := next(different, None)) is not None:
        changed = [name for name, value in there.items() if here.get(name) != value]
        raise SettingError(
            ", ".join(f"model.init_args.{name}" for name in changed),
            ", ".join(str(here.get(name)) for name in changed),
            f"the checkpoint has {', '.join(str(there[name]) for name in changed)}, so its weights differ ({weight})",
        )


def check_tokenizer(checkpoint: dict[str, Any], data: LightningDataModule | None) -> None:
    """Raise a `SettingError` unless the data's tokenizer is the one that the checkpoint was trained with."""
    stored, tokenizer = checkpoint.get("tokenizer"), getattr(data, "tokenizer", None)
    if stored is not None and tokenizer is not None and tokenizer.fingerprint != stored["fingerprint"]:
        remedy = f"the checkpoint was trained with tokenizer {stored['fingerprint']}; leave this setting out"
        raise SettingError("data.init_args.tokenizer", tokenizer.fingerprint, remedy)


def shapes(hparams: dict[str, Any], model: LightningModule) -> dict[str, torch.Size]:
    """Names and shapes of the weights that a model of this class has with the given hyperparameters."""
    with torch.device("meta"):  # the weights take no memory
        meta_copy = type(model)(**hparams)
        meta_copy.configure_model()
    return {name: weight.shape for name, weight in meta_copy.state_dict().items()}
