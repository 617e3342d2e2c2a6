"""What a checkpoint says of itself, and whether it fits a model."""

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule

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


def read(path: str | Path) -> dict[str, Any]:
    """Open a checkpoint without reading its weights into memory.

    Raises:
        SettingError: If there is no such file, or it is truncated, or no checkpoint of this project.
    """
    path = Path(path)
    if not path.exists():
        raise SettingError("ckpt_path", path, "there is no such file; give the path of a checkpoint")
    if path.is_dir():
        remedy = (
            "this is a sharded checkpoint; make one file of it with "
            f"`python -m lightning.fabric.utilities.consolidate_checkpoint {path}`, or train with "
            "save_distributed_checkpoint: false"
        )
        raise SettingError("ckpt_path", path, remedy)
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises what its unpickler and its zip reader happen to meet
        reason = str(error).splitlines()[0]
        raise SettingError(
            "ckpt_path", path, f"the file is truncated or no checkpoint ({reason}); give another one of the run"
        ) from error
    if not isinstance(checkpoint, dict) or not {"architecture", "hyper_parameters", "state_dict"} <= checkpoint.keys():
        raise SettingError("ckpt_path", path, "the file was not written by `llp fit`; give a checkpoint that was")
    return checkpoint


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
