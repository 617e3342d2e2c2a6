"""A folder that `llp export` wrote, read like a checkpoint: values and tensors, none of which is executed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from llp.atomic_files import EXPORT_RECORD, file_sha256
from llp.checkpoints.fingerprints import weights_digest
from llp.errors import SettingError, require

CONFIG, WEIGHTS = "config.json", "model.safetensors"
CHANGED = "WEIGHTS CHANGED: those of this folder are not the ones that were exported."
"""The notice for a folder whose weights another program has written since the export."""
_TIED, _SOURCE = "decoder.head.weight", "decoder.embed.weight"
_KEPT = ("architecture", "global_step", "seed", "settings_history", "initialized_from", "fingerprints", "config")
_LENGTHS = ("window_len", "scoring_window_len", "scoring_stride")
_AGAIN = "export the checkpoint again, or put the file back"


def stored_weights(weights: dict[str, Tensor], tied: bool) -> dict[str, Tensor]:
    """The weights that a file holds: a head that shares the embedding's weight is not written twice."""
    return {name: weight for name, weight in weights.items() if not (tied and name == _TIED)}


def record_of(checkpoint: dict[str, Any], origin: dict[str, Any], model: dict[str, Any]) -> dict[str, Any]:
    """What a folder keeps of a checkpoint beside its weights, as JSON, so that `read` can return it.

    Args:
        checkpoint: What `reading.read` returned.
        origin: Where the folder comes from: the checkpoint, its digest, the type of the numbers.
        model: The part of `config.json` that makes the model what it is.
    """
    data, stored = checkpoint.get("datamodule_hyper_parameters", {}), checkpoint["tokenizer"]
    metrics = checkpoint.get("callbacks", {}).get("RunMetrics", {})
    return {
        "exported": origin,
        **{name: checkpoint.get(name) for name in _KEPT},
        "hyper_parameters": dict(checkpoint["hyper_parameters"]),
        "datamodule_hyper_parameters": {name: data.get(name) for name in _LENGTHS},
        "metrics": {name: metrics.get(name) for name in ("tokens", "input_tokens", "seconds")},
        "tokenizer": stored and {name: value for name, value in stored.items() if name != "data"},
        "model": model,
        "pytorch-lightning_version": checkpoint["pytorch-lightning_version"],
    }


def read(folder: Path) -> dict[str, Any]:
    """What `reading.read` returns of the checkpoint that the folder was written from, without its optimizer's state.

    Raises:
        SettingError: If a file is missing or damaged, or a file other than the weights' was changed since the export.
    """
    record = _json(folder / EXPORT_RECORD)
    for name, expected in record["files"].items():
        path = folder / name
        _check(path, path.is_file() and file_sha256(path) == expected)
    config = _json(folder / CONFIG)
    changed = [name for name, value in record["model"].items() if config.get(name) != value]
    remedy = f"{', '.join(changed)}: changed since the export; {_AGAIN}"
    require(not changed, "ckpt_path", folder / CONFIG, remedy)
    stored = record["tokenizer"]
    if stored is not None:
        data = np.frombuffer((folder / stored["file"]).read_bytes(), np.uint8)
        stored["data"] = torch.from_numpy(data.copy())
    record["hyper_parameters"]["betas"] = tuple(record["hyper_parameters"]["betas"])
    return {
        **record,
        "state_dict": _weights(folder / WEIGHTS, record["tensors"]),
        "callbacks": {} if record["metrics"]["tokens"] is None else {"RunMetrics": record["metrics"]},
    }


def outcome(checkpoint: dict[str, Any]) -> dict[str, Any] | None:
    """Where an exported folder comes from, and whether its weights were changed since; None for a checkpoint."""
    if "exported" not in checkpoint:
        return None
    changed = weights_digest(checkpoint["state_dict"].items()) != checkpoint["weights_sha256"]
    return {**checkpoint["exported"], "weights_changed": changed}


def _weights(path: Path, shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """The tensors of a file, mapped into memory."""
    try:
        from safetensors import safe_open  # an extra
    except ImportError as error:
        remedy = 'it needs the package safetensors: pip install "long-lora-perceiver[export]"'
        raise SettingError("ckpt_path", path.parent, remedy) from error
    try:
        with safe_open(path, framework="pt") as file:
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  not a mapping
    except Exception as error:  # of no type of its own for a file that is missing or cut
        raise SettingError("ckpt_path", path, f"can't be read ({str(error).splitlines()[0]}); {_AGAIN}") from error
    there = {name: list(weight.shape) for name, weight in weights.items()}
    for name in [*shapes, *there]:
        remedy = f"{name} is {there.get(name)} there, and {shapes.get(name)} in the model; {_AGAIN}"
        require(shapes.get(name) == there.get(name), "ckpt_path", path, remedy)
    return weights if _TIED in weights else {**weights, _TIED: weights[_SOURCE]}


def _json(path: Path) -> dict[str, Any]:
    _check(path, path.is_file())
    try:
        return dict(json.loads(path.read_bytes()))
    except ValueError as error:
        raise SettingError("ckpt_path", path, f"it is damaged; {_AGAIN}") from error


def _check(path: Path, is_right: bool) -> None:
    require(is_right, "ckpt_path", path, f"missing, or changed since the export; {_AGAIN}")
