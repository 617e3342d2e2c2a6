"""How a model rotates its keys by their position, determined by running the model itself.

The attention function is replaced by one that returns zeros, so that a layer's keys depend only on the tokens and their
positions. The same eight tokens are then read at several offsets. The keys at an offset must equal those at offset 0,
either as they are or rotated with one of the model's `inv_freq` buffers. No list of model names is needed.
"""

from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from llp.decoder.rotary import Rotation
from llp.errors import SettingError

_PROBE = __name__.replace(".", "_") + "_probe"  # differs from that of the copy of this code in an exported folder
_MASK = object()  # what its mask function returns
_N_TOKENS = 8
_OFFSETS = (1, 37)
_TOLERANCE = 0.05  # relative to the largest key; equal keys differ by 4e-6 (bfloat16: 4e-3), others by 0.3 or more
_UNKNOWN_TERMS = {"softcap": "caps its scores", "s_aux": "has sinks of its own", "position_bias": "adds a bias"}


class Call(NamedTuple):
    """The arguments of the attention function in one layer."""

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    mask: object
    arguments: dict[str, Any]


_calls: ContextVar[list[Call]] = ContextVar("calls")


class Probed(NamedTuple):
    """What was found about an attention layer; `layer` is its index in a cache."""

    module: nn.Module
    layer: int
    n_heads: int
    rotation: Rotation | None
    """How its keys are rotated by their position; None if they depend on it in another way."""


def probe(model: PreTrainedModel) -> list[Probed]:
    """How each attention layer rotates its keys.

    Raises:
        SettingError: If a pattern can't be computed in the model; the message says why.
    """
    start = _calls_at(model, 0)
    if not start:
        raise _refused(model, "it does not use transformers' AttentionInterface")
    for call in start:
        _check_call(model, call)
    trained_len = getattr(model.config.get_text_config(), "max_position_embeddings", None) or 2048
    near = {offset: _calls_at(model, offset) for offset in _OFFSETS if offset + _N_TOKENS <= trained_len}
    buffers = [buffer for name, buffer in model.named_buffers() if name.endswith("inv_freq") and buffer.ndim == 1]
    rotations = [Rotation(buffer.detach().clone(), interleaved) for buffer in buffers for interleaved in (False, True)]
    not_rotated = Rotation(torch.zeros(0), interleaved=False)
    found = []
    for number, call in enumerate(start):
        moved = {offset: calls[number].key for offset, calls in near.items()}
        rotation = _find_rotation(call.key, moved, [not_rotated, *rotations])
        layer = call.module.__dict__.get("layer_idx", number)
        found.append(Probed(call.module, layer, call.query.shape[1], rotation))
    if rotations:  # a model with learnt positions can't read beyond its trained length
        far = _calls_at(model, 2 * trained_len)
        again = _calls_at(model, 0)  # resets frequencies that depend on the length
        for one, at_start, at_end in zip(found, again, far, strict=True):
            if one.rotation is None or not _fits(one.rotation, at_start.key, at_end.key, 2 * trained_len):
                raise _refused(model, "its rotary frequencies depend on the text's length (dynamic, longrope)")
    return found


def _calls_at(model: PreTrainedModel, offset: int) -> list[Call]:
    """The calls of the attention function, one per layer, when the tokens are read at an offset."""
    positions = torch.arange(offset, offset + _N_TOKENS, device=model.device).unsqueeze(0)
    tokens = (positions - offset + 1).remainder(model.config.get_text_config().vocab_size)
    previous, training = model.config._attn_implementation, [module for module in model.modules() if module.training]
    calls: list[Call] = []
    token = _calls.set(calls)
    try:
        model.eval()
        model.set_attn_implementation(_PROBE)
        with torch.no_grad():
            model(input_ids=tokens, position_ids=positions, use_cache=False)
    except (TypeError, AttributeError, IndexError) as error:
        raise _refused(model, f"{type(error).__name__}: {error}") from error
    finally:
        _calls.reset(token)
        model.set_attn_implementation(previous)
        for module in training:
            module.training = True
    return calls


def _returns_zeros(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: object, **arguments: Any
) -> tuple[Tensor, None]:
    """The attention function of the probe."""
    _calls.get().append(Call(module, query, key, value, attention_mask, arguments))
    return query.new_zeros(*query.shape[:-1], value.shape[-1]).transpose(1, 2), None


def _check_call(model: PreTrainedModel, call: Call) -> None:
    for name, what in _UNKNOWN_TERMS.items():
        if call.arguments.get(name) is not None:
            raise _refused(model, f"it {what} (`{name}`), which the kernels of patterns don't compute")
    if call.value.shape[-1] != call.key.shape[-1]:
        raise _refused(model, f"its keys have width {call.key.shape[-1]} and its values {call.value.shape[-1]}")
    if not getattr(call.module, "is_causal", True):
        raise _refused(model, "it is not causal")
    if call.mask is not _MASK:
        raise _refused(model, "it does not use transformers' AttentionMaskInterface")


def _refused(model: PreTrainedModel, reason: str) -> SettingError:
    name = f"{type(model).__name__} (model_type {model.config.model_type})"
    return SettingError("model", name, f"its attention can't be replaced: {reason}")


def _find_rotation(key: Tensor, moved: dict[int, Tensor], candidates: list[Rotation]) -> Rotation | None:
    """The rotation that turns a layer's keys at offset 0 into those at each of the offsets in `moved`."""
    for rotation in candidates:
        if all(_fits(rotation, key, other, offset) for offset, other in moved.items()):
            return rotation
    return None


def _fits(rotation: Rotation, key: Tensor, moved: Tensor, offset: int) -> bool:
    if 2 * len(rotation.inv_freq) > key.shape[-1]:
        return False
    rotated = rotation.turn(key.double(), *rotation.cos_sin(torch.tensor([offset], device=key.device)))
    return bool((rotated - moved.double()).abs().max() <= _TOLERANCE * rotated.abs().max())


AttentionInterface.register(_PROBE, _returns_zeros)
AttentionMaskInterface.register(_PROBE, lambda **arguments: _MASK)
