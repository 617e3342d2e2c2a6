"""Writes a pretrained model that was trained further as a folder of transformers, with its attention or without it."""

import shutil
from pathlib import Path
from typing import Any

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from llp.decoder.patterns import Layer
from llp.export.layers import described
from llp.export.modeling_file import modeling_source
from llp.hf import set_attention
from llp.hf.pretrained_model import PretrainedModel, model_folder


def write_pretrained(checkpoint: dict[str, Any], folder: Path, output: Path, dtype: str, plain: bool) -> str:
    """Write weights, configuration and tokenizer; adapters are merged into the weights. Returns a message for the user.

    Args:
        checkpoint: Of a `PretrainedModel`.
        folder: Where to write.
        output: What the folder will be called.
        dtype: Type of the weights.
        plain: Whether to leave the attention out: the model is then dense.

    Raises:
        SettingError: If the pattern can't be exported.
    """
    module = PretrainedModel(**checkpoint["hyper_parameters"])
    pattern = None if plain or module.pattern is None else described(Layer(module.pattern))
    module.configure_model()
    module.load_state_dict(checkpoint["state_dict"])
    model: Any = module.eval().decoder.model
    set_attention(model, None)
    merge_adapters(model)
    attention = "dense attention"
    for name in ("auto_map", "llp_attention"):  # of a model that was exported before
        vars(model.config).pop(name, None)
    if pattern is not None:
        attention = "its attention (trust_remote_code=True)"
        model.config.auto_map = {"AutoModelForCausalLM": "modeling_llp.WithAttention"}
        model.config.llp_attention = {**pattern, "keep_first": module.keep_first, "layers": module.local_layers}
        (folder / "modeling_llp.py").write_text(modeling_source("llp.export.pretrained_template"), encoding="utf-8")
    model.to(getattr(torch, dtype)).save_pretrained(folder)
    for weights in folder.glob("*.safetensors"):  # written readable by the owner only
        weights.chmod(0o644)
    if module.path is not None:
        _copy_tokenizer(model_folder(module.path, module.revision), folder)
    return f"Written to {output}: a model of transformers with {attention}, in {dtype}"


def merge_adapters(model: nn.Module) -> None:
    """Add the adapters of linear layers to their weights, and take them out, in place."""
    for name, layer in list(model.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            parent, _, own = name.rpartition(".")
            setattr(model.get_submodule(parent), own, layer.get_base_layer())


def _copy_tokenizer(source: Path, folder: Path) -> None:
    for pattern in ("tokenizer*", "special_tokens_map.json", "vocab.json", "merges.txt", "chat_template*"):
        for file in source.glob(pattern):
            shutil.copyfile(file, folder / file.name)
