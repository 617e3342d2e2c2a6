"""How a model rotates its keys by their position, determined by running the model itself.

The attention function is replaced by one that returns zeros, so that a layer's keys depend only on the tokens and their
positions. The same eight tokens are then read at several offsets. The keys at an offset must equal those at offset 0,
either as they are or rotated with one of the model's `inv_freq` buffers. No list of model names is needed.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from llp.decoder.rotary import Rotation
from llp.errors import SettingError

_N_TOKENS = 8
_OFFSETS = (0, 1, 37)
_TOLERANCE = 0.05  # relative to the largest key; equal keys differ by 4e-6 (bfloat16: 4e-3), others by 0.3 or more
_UNKNOWN_TERMS = {"softcap": "caps its scores", "s_aux": "has sinks of its own", "position_bias": "adds a bias"}


class Call(NamedTuple):
    """The arguments of the attention function in one layer, and whether the registered mask function made its mask."""

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    has_rows: bool
    arguments: dict[str, Any]


class Probed(NamedTuple):
    """What was found about an attention layer; `layer` is its index in a cache."""

    module: nn.Module
    layer: int
    n_heads: int
    turns: bool | None
    """Whether its keys are rotated by their position; None if they depend on it in another way."""
    rotation: Rotation | None


def probe(model: PreTrainedModel, run: Callable[[Tensor, Tensor], list[Call]]) -> list[Probed]:
    """How each attention layer rotates its keys.

    `run` maps tokens and positions, (1, n) each, to the calls of a forward pass whose attention returns zeros.

    Raises:
        SettingError: If a pattern can't be computed in the model; the message says why.
    """
    config = model.config.get_text_config()
    trained_len = getattr(config, "max_position_embeddings", None) or 2048
    tokens = torch.arange(1, _N_TOKENS + 1, device=model.device).remainder(config.vocab_size).unsqueeze(0)

    def calls_at(offset: int) -> list[Call]:
        return run(tokens, torch.arange(offset, offset + _N_TOKENS, device=model.device).unsqueeze(0))

    near = [calls_at(offset) for offset in _OFFSETS if offset + _N_TOKENS <= trained_len]
    if not near[0]:
        raise refused(model, "it does not use transformers' AttentionInterface")
    for call in near[0]:
        _check_call(model, call)
    candidates = _rotations(model)
    found = [_find_rotation([call.key for call in calls], candidates) for calls in zip(*near, strict=True)]
    if candidates:  # a model with learnt positions can't read beyond its trained length
        far, again = calls_at(2 * trained_len), calls_at(0)  # the latter resets frequencies that depend on the length
        for (turns, rotation), start, moved in zip(found, again, far, strict=True):
            if turns is None or (rotation and not _equal(_turned(start.key, rotation, 2 * trained_len), moved.key)):
                raise refused(model, "its rotary frequencies depend on the text's length (dynamic, longrope)")
    return [
        Probed(call.module, call.module.__dict__.get("layer_idx", number), call.query.shape[1], *one)
        for number, (call, one) in enumerate(zip(near[0], found, strict=True))
    ]


def refused(model: PreTrainedModel, reason: str) -> SettingError:
    """The error for a model in which the pattern can't be computed."""
    name = f"{type(model).__name__} (model_type {model.config.model_type})"
    return SettingError("model", name, f"its attention can't be replaced: {reason}")


def _check_call(model: PreTrainedModel, call: Call) -> None:
    for name, what in _UNKNOWN_TERMS.items():
        if call.arguments.get(name) is not None:
            raise refused(model, f"it {what} (`{name}`), which the kernels of patterns don't compute")
    if call.value.shape[-1] != call.key.shape[-1]:
        raise refused(model, f"its keys have width {call.key.shape[-1]} and its values {call.value.shape[-1]}")
    if not getattr(call.module, "is_causal", True):
        raise refused(model, "it is not causal")
    if not call.has_rows:
        raise refused(model, "it does not use transformers' AttentionMaskInterface")


def _rotations(model: nn.Module) -> list[Rotation]:
    buffers = [buffer for name, buffer in model.named_buffers() if name.endswith("inv_freq") and buffer.ndim == 1]
    return [Rotation(buffer.detach().clone(), interleaved) for buffer in buffers for interleaved in (False, True)]


def _find_rotation(keys: list[Tensor], candidates: list[Rotation]) -> tuple[bool | None, Rotation | None]:
    """Whether a layer's keys are rotated at each of the near offsets, and by which rotation."""
    others = list(zip(_OFFSETS[1:], keys[1:], strict=False))
    if all(_equal(keys[0], moved) for _, moved in others):
        return False, None
    for rotation in candidates:
        is_narrow = 2 * len(rotation.inv_freq) <= keys[0].shape[-1]
        if is_narrow and all(_equal(_turned(keys[0], rotation, offset), moved) for offset, moved in others):
            return True, rotation
    return None, None


def _turned(key: Tensor, rotation: Rotation, offset: int) -> Tensor:
    return rotation.turn(key.double(), *rotation.cos_sin(torch.tensor([offset], device=key.device)))


def _equal(a: Tensor, b: Tensor) -> bool:
    return bool((a.double() - b.double()).abs().max() <= _TOLERANCE * a.double().abs().max())
