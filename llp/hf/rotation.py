"""How a model turns its keys with their position, found by running the model itself.

An attention that returns zeros is put in, so that a layer's keys depend on the tokens and their positions alone. The
same eight tokens are then read at several offsets. Keys at an offset must be those at offset 0, turned by one of the
model's `inv_freq` buffers, or be equal to them. No list of model names is needed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from llp.errors import SettingError

_N_TOKENS = 8
_OFFSETS = (0, 1, 37)
_TOLERANCE = 0.05  # of the largest key: what fits differs by 4e-6 (bfloat16: 4e-3), what does not by 0.3 or more


@dataclass(frozen=True, eq=False)
class Rotation:
    """Rotary positions: pairs of features are turned by position * inv_freq. Source: RoFormer, arXiv 2104.09864."""

    inv_freq: Tensor
    """Angles per position, (R,); the first 2 R features turn."""
    interleaved: bool
    """Whether pairs are neighbours, rather than r and r + R."""

    def cos_sin(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines for positions (..., N): (..., N, R), computed in float64."""
        angles = positions.unsqueeze(-1).double() * self.inv_freq.to(positions.device).double()
        return angles.cos(), angles.sin()

    def turn(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Turn features (..., N, D) by the angles of `cos` and `sin`, (..., N, R)."""
        n_turned = 2 * cos.shape[-1]
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
        if self.interleaved:
            a, b = x[..., 0:n_turned:2], x[..., 1:n_turned:2]  # (..., N, R)
            turned = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
        else:
            a, b = x[..., :n_turned].chunk(2, dim=-1)
            turned = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
        return torch.cat((turned, x[..., n_turned:]), dim=-1) if n_turned < x.shape[-1] else turned


class Call(NamedTuple):
    """What a layer handed to the attention function."""

    module: nn.Module
    n_heads: int
    key: Tensor
    value_dim: int
    has_rows: bool
    """Whether the mask came from the registered mask function."""
    arguments: dict[str, object]


class Probed(NamedTuple):
    """An attention layer, as found."""

    module: nn.Module
    n_heads: int
    turns: bool | None
    """Whether its keys turn with their position; None if they change in another way."""
    rotation: Rotation | None


def probe(model: nn.Module, run: Callable[[Tensor, Tensor], list[Call]]) -> list[Probed]:
    """How each attention layer of the model turns its keys, in the order of the layers.

    Args:
        model: A causal language model.
        run: Maps tokens and positions, (1, n) each, to the calls of a forward pass with an attention of zeros.

    Raises:
        SettingError: If the pattern could not be computed in this model; the message says why.
    """
    config = model.config.get_text_config()
    trained_len = getattr(config, "max_position_embeddings", None) or 2048
    tokens = torch.arange(1, _N_TOKENS + 1, device=model.device).remainder(config.vocab_size).unsqueeze(0)

    def keys_at(offset: int) -> list[Call]:
        return run(tokens, torch.arange(offset, offset + _N_TOKENS, device=tokens.device).unsqueeze(0))

    near = [keys_at(offset) for offset in _OFFSETS if offset + _N_TOKENS <= trained_len]
    if not near[0]:
        raise refused(model, "its attention does not go through transformers' AttentionInterface")
    for call in near[0]:
        _check_call(model, call)
    candidates = _rotations(model)
    found = [_find_rotation([calls[number] for calls in near], candidates) for number in range(len(near[0]))]
    if candidates and any(turns is None for turns, _ in found):
        raise refused(model, "its keys do not turn by its `inv_freq` (dynamic or longrope scaling, say)")
    if candidates:  # learnt positions end at the trained length
        far, again = keys_at(2 * trained_len), keys_at(0)  # the latter resets frequencies that depend on the length
        for number, (turns, rotation) in enumerate(found):
            if turns and not _equal(_turned(again[number].key, rotation, 2 * trained_len), far[number].key):
                raise refused(model, "its rotary frequencies depend on the length of the text (dynamic, longrope)")
    return [Probed(call.module, call.n_heads, *one) for call, one in zip(near[0], found, strict=True)]


def refused(model: nn.Module, reason: str) -> SettingError:
    """The error for a model in which the pattern can't be computed."""
    name = f"{type(model).__name__} (model_type {model.config.model_type})"
    return SettingError("model", name, f"this model can't take another attention: {reason}")


def _check_call(model: nn.Module, call: Call) -> None:
    for name, what in (("softcap", "a soft cap on scores"), ("s_aux", "sinks of its own"), ("position_bias", "a bias")):
        if call.arguments.get(name) is not None:
            raise refused(model, f"its attention has {what} (`{name}`), which the pattern's kernels can't compute")
    if call.value_dim != call.key.shape[-1]:
        raise refused(model, f"its keys and values have unequal widths, {call.key.shape[-1]} and {call.value_dim}")
    if not getattr(call.module, "is_causal", True):
        raise refused(model, "its attention is not causal")
    if not call.has_rows:
        raise refused(model, "its masks are not made by transformers' AttentionMaskInterface")


def _rotations(model: nn.Module) -> list[Rotation]:
    frequencies: list[Tensor] = []
    for name, buffer in model.named_buffers():
        known = any(buffer.shape == other.shape and torch.equal(buffer, other) for other in frequencies)
        if name.endswith("inv_freq") and buffer.ndim == 1 and not known:
            frequencies.append(buffer.detach().clone())
    return [Rotation(inv_freq, style) for inv_freq in frequencies for style in (False, True)]


def _find_rotation(calls: list[Call], candidates: list[Rotation]) -> tuple[bool | None, Rotation | None]:
    """Whether a layer's keys, at each of the near offsets, turn, and how."""
    start, others = calls[0].key, list(zip(_OFFSETS[1:], (call.key for call in calls[1:]), strict=False))
    if all(_equal(start, moved) for _, moved in others):
        return False, None
    for rotation in candidates:
        fits = 2 * len(rotation.inv_freq) <= start.shape[-1]
        if fits and all(_equal(_turned(start, rotation, offset), moved) for offset, moved in others):
            return True, rotation
    return None, None


def _turned(key: Tensor, rotation: Rotation | None, offset: int) -> Tensor:
    assert rotation is not None
    return rotation.turn(key.double(), *rotation.cos_sin(torch.tensor([offset], device=key.device)))


def _equal(a: Tensor, b: Tensor) -> bool:
    return bool((a.double() - b.double()).abs().max() <= _TOLERANCE * a.double().abs().max())
