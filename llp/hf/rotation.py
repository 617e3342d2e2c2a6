"""How a model turns its keys with their position, found by running the model itself.

An attention that returns zeros is put in, so that a layer's keys depend on the tokens and their positions alone. The
same eight tokens are then read at several offsets. Keys at an offset must be those at offset 0, turned by one of the
model's `inv_freq` buffers, or be equal to them. No list of model names is needed.
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
_TOLERANCE = 0.05  # of the largest key: what fits differs by 4e-6 (bfloat16: 4e-3), what does not by 0.3 or more
_UNKNOWN_TERMS = {"softcap": "caps its scores", "s_aux": "has sinks of its own", "position_bias": "adds a bias"}


class Call(NamedTuple):
    """What a layer handed to the attention function, and whether its mask came from the registered mask function."""

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    has_rows: bool
    arguments: dict[str, Any]


class Probed(NamedTuple):
    """An attention layer, as found; `layer` is its number in a cache."""

    module: nn.Module
    layer: int
    n_heads: int
    turns: bool | None
    """Whether its keys turn with their position; None if they change in another way."""
    rotation: Rotation | None


def probe(model: PreTrainedModel, run: Callable[[Tensor, Tensor], list[Call]]) -> list[Probed]:
    """How each attention layer turns its keys; a `SettingError` says why a pattern can't be computed in the model.

    `run` maps tokens and positions, (1, n) each, to the calls of a forward pass with an attention of zeros.
    """
    config = model.config.get_text_config()
    trained_len = getattr(config, "max_position_embeddings", None) or 2048
    tokens = torch.arange(1, _N_TOKENS + 1, device=model.device).remainder(config.vocab_size).unsqueeze(0)

    def calls_at(offset: int) -> list[Call]:
        return run(tokens, torch.arange(offset, offset + _N_TOKENS, device=model.device).unsqueeze(0))

    near = [calls_at(offset) for offset in _OFFSETS if offset + _N_TOKENS <= trained_len]
    if not near[0]:
        raise refused(model, "its attention does not go through transformers' AttentionInterface")
    for call in near[0]:
        _check_call(model, call)
    candidates = _rotations(model)
    found = [_find_rotation([call.key for call in calls], candidates) for calls in zip(*near, strict=True)]
    if candidates:  # learnt positions end at the trained length
        far, again = calls_at(2 * trained_len), calls_at(0)  # the latter resets frequencies that depend on the length
        for (turns, rotation), start, moved in zip(found, again, far, strict=True):
            if turns is None or (rotation and not _equal(_turned(start.key, rotation, 2 * trained_len), moved.key)):
                raise refused(model, "its keys' frequencies depend on the text's length (dynamic, longrope)")
    return [
        Probed(call.module, call.module.__dict__.get("layer_idx", number), call.query.shape[1], *one)
        for number, (call, one) in enumerate(zip(near[0], found, strict=True))
    ]


def refused(model: PreTrainedModel, reason: str) -> SettingError:
    """The error for a model in which the pattern can't be computed."""
    name = f"{type(model).__name__} (model_type {model.config.model_type})"
    return SettingError("model", name, f"its attention can't be exchanged: {reason}")


def _check_call(model: PreTrainedModel, call: Call) -> None:
    for name, what in _UNKNOWN_TERMS.items():
        if call.arguments.get(name) is not None:
            raise refused(model, f"it {what} (`{name}`), which the kernels of patterns don't compute")
    if call.value.shape[-1] != call.key.shape[-1]:
        raise refused(model, f"keys are {call.key.shape[-1]} and values {call.value.shape[-1]} wide")
    if not getattr(call.module, "is_causal", True):
        raise refused(model, "it is not causal")
    if not call.has_rows:
        raise refused(model, "its masks do not come from transformers' AttentionMaskInterface")


def _rotations(model: nn.Module) -> list[Rotation]:
    buffers = [buffer for name, buffer in model.named_buffers() if name.endswith("inv_freq") and buffer.ndim == 1]
    return [Rotation(buffer.detach().clone(), interleaved) for buffer in buffers for interleaved in (False, True)]


def _find_rotation(keys: list[Tensor], candidates: list[Rotation]) -> tuple[bool | None, Rotation | None]:
    """Whether a layer's keys, at each of the near offsets, turn, and how."""
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
