"""Writes an exported folder: weights, configuration, code, tokenizer and model card."""

import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from llp.atomic_files import EXPORT_RECORD, file_sha256, is_exported, whole_checkpoint
from llp.checkpoints import exported_folder, reading
from llp.checkpoints.consolidation import merged
from llp.checkpoints.fingerprints import weights_digest
from llp.errors import require
from llp.export.fast_tokenizer import FastTokenizer, fast_tokenizer
from llp.export.layers import described, digest
from llp.export.model_card import model_card
from llp.export.modeling_file import modeling_source
from llp.language_model import LanguageModel

DTYPES = ("float32", "bfloat16", "float16")
_UNKNOWN: dict[str, int | None] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}


def write_folder(ckpt_path: Path, output: Path, dtype: str = "float32", plain: bool = False) -> str:
    """Write a checkpoint as a folder that transformers opens, whole or not at all; returns a message for the user.

    Args:
        ckpt_path: A checkpoint, which may be sharded.
        output: The folder, which must not exist yet.
        dtype: Type of the weights, one of `DTYPES`.
        plain: Leave the attention of a pretrained model out.

    Raises:
        SettingError: If a value can't be used, or a layer has a pattern that can't be exported.
    """
    for package in ("safetensors", "tokenizers"):
        remedy = 'it needs the packages safetensors and tokenizers: pip install "long-lora-perceiver[export]"'
        require(find_spec(package) is not None, "llp export", package, remedy)
    require(dtype in DTYPES, "dtype", dtype, f"choose {', '.join(DTYPES)}")
    require(not output.exists(), "output", output, "it exists already; remove it, or name another with --output")
    remedy = "this folder was exported already; name the checkpoint of a run"
    require(not is_exported(ckpt_path), "ckpt_path", ckpt_path, remedy)
    with whole_checkpoint(output) as folder:
        folder.mkdir(parents=True)
        return _write(ckpt_path, folder, output, dtype, plain)


def _write(ckpt_path: Path, folder: Path, output: Path, dtype: str, plain: bool) -> str:
    shards = folder / "weights.pt"
    checkpoint = merged(ckpt_path, shards) if ckpt_path.is_dir() else reading.read(ckpt_path)
    if checkpoint["architecture"] == "llp.PretrainedModel":
        from llp.export.pretrained_folder import write_pretrained  # it imports transformers

        return write_pretrained(checkpoint, folder, output, dtype, plain)
    require(not plain, "plain", plain, "only a pretrained model has another attention; leave it out")
    model: LanguageModel = reading.import_class(checkpoint["architecture"], LanguageModel)(
        **checkpoint["hyper_parameters"]
    )
    parts = _parts(model, checkpoint)
    weights = _cast(checkpoint["state_dict"], dtype)
    origin = {"checkpoint": ckpt_path.name, "checkpoint_sha256": reading.sha256(ckpt_path), "dtype": dtype}
    record = exported_folder.record_of(checkpoint, origin, parts)
    record["weights_sha256"] = weights_digest(weights.items())
    stored = exported_folder.stored_weights(weights, model.settings.tie_embeddings)
    record["tensors"] = {name: list(weight.shape) for name, weight in stored.items()}
    tokenizer = _write_tokenizer(folder, checkpoint, record)
    _save(stored, folder / exported_folder.WEIGHTS)
    shards.unlink(missing_ok=True)
    tokens = _UNKNOWN if tokenizer is None else tokenizer.token_ids
    _write_json(folder / exported_folder.CONFIG, _config(model, parts, dtype, tokens))
    generation = {"do_sample": False, "use_cache": True, **tokens}
    _write_json(folder / "generation_config.json", generation)
    (folder / "modeling_llp.py").write_text(modeling_source(), encoding="utf-8")
    n_parameters = sum(weight.numel() for weight in stored.values())
    card = model_card(ckpt_path, model, checkpoint, record, n_parameters, tokenizer)
    (folder / "README.md").write_text(card, encoding="utf-8")
    _write_json(folder / EXPORT_RECORD, record)
    message = f"Written to {output}: {n_parameters:,} parameters in {dtype}"
    return message if tokenizer is None else f"{message}\n{tokenizer.note}"


def _parts(model: LanguageModel, checkpoint: dict[str, Any]) -> dict[str, object]:
    """What makes the model what it is, as plain values."""
    settings = replace(model.settings, dropout=0.0, activation_checkpointing=False, compile=False)
    compression = model.compression()
    lengths = checkpoint.get("datamodule_hyper_parameters", {})
    asked = lengths.get("window_len"), lengths.get("scoring_window_len"), lengths.get("scoring_stride")
    require(asked[0] is not None, "ckpt_path", "(its data)", "it does not say in which windows it was trained")
    window_len, stride = model.geometry.scoring_window(*asked)
    return {
        "settings": asdict(settings),
        "patterns": [described(layer) for layer in model.layers()],
        "compress": None if compression is None else asdict(compression),
        "window_len": window_len,
        "stride": stride,
    }


def _cast(weights: dict[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """Weights by name, in the given type."""
    cast: dict[int, Tensor] = {}  # a tied weight stays one
    for weight in weights.values():
        cast.setdefault(weight.data_ptr(), weight.to(getattr(torch, dtype)).contiguous())
    return {name: cast[weight.data_ptr()] for name, weight in weights.items()}


def _config(
    model: LanguageModel, parts: Mapping[str, object], dtype: str, tokens: Mapping[str, int | None]
) -> dict[str, object]:
    """The content of `config.json`."""
    return {
        "model_type": "llp",
        "architectures": ["LLPForCausalLM"],
        "auto_map": {"AutoConfig": "modeling_llp.LLPConfig", "AutoModelForCausalLM": "modeling_llp.LLPForCausalLM"},
        **parts,
        "digest": digest(parts),
        "tie_word_embeddings": model.settings.tie_embeddings,
        "use_cache": True,
        "dtype": dtype,
        **tokens,
    }


def _write_tokenizer(folder: Path, checkpoint: dict[str, Any], record: dict[str, Any]) -> FastTokenizer | None:
    """Write the tokenizer as llp reads it, and as a fast tokenizer if that is exact; None if the model has none."""
    stored, record["files"] = checkpoint["tokenizer"], {}
    if stored is None:
        return None
    own = reading.restored_tokenizer(stored)
    tokenizer = fast_tokenizer(own, stored["start_token"])
    record["tokenizer"]["file"] = tokenizer.own_file
    (folder / tokenizer.own_file).write_bytes(own.serialized())
    for name, content in tokenizer.files.items():
        _write_json(folder / name, content)
    for name in [tokenizer.own_file, *tokenizer.files]:
        record["files"][name] = file_sha256(folder / name)
    return tokenizer


def _save(weights: dict[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file  # an extra

    save_file(weights, path, metadata={"format": "pt"})  # readable by the owner only
    path.chmod(0o644)


def _write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
