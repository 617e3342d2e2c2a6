"""`set_attention`: a causal language model of transformers reads with another attention pattern."""

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, GenerationConfig, PreTrainedModel
from transformers.generation import GenerationMode

from llp.decoder.patterns import AttentionPattern
from llp.decoder.rotary import Rotation
from llp.errors import SettingError, require
from llp.hf.cache import LocalCache
from llp.hf.layer import LayerAttention, attend
from llp.hf.rotation import Call, Probed, probe, refused
from llp.hf.rows import Rows, make_rows

_NAME = __name__.replace(".", "_")  # the copy of this code in an exported folder has a name of its own
_DENSE, _DENSE_MASK = AttentionInterface()["sdpa"], AttentionMaskInterface()["sdpa"]
_PIECE_LEN = 4096  # of a prompt, at a time
_GOES_BACK = ("assisted_generation", "contrastive_search")  # ways to generate that take tokens back
_calls: ContextVar[list[Call] | None] = ContextVar("calls", default=None)


def set_attention(
    model: PreTrainedModel,
    pattern: AttentionPattern | None,
    keep_first: int = 4,
    layers: Sequence[int] | None = None,
    move_first: bool = True,
) -> None:
    """Let a causal language model attend by `pattern`: in `model(...)`, in `model.generate(...)` and in training.

    A query also sees the first `keep_first` tokens of its text, which trained models use as an attention sink
    (StreamingLLM, arXiv 2309.17453). Unless the pattern shows them at their own positions, they seem to stand right
    before the first position that it shows, so that no distance is longer than those inside of the pattern. Weights
    are not changed. `generate` uses a `LocalCache`, and reads long prompts in pieces.

    Args:
        model: A model of transformers, or a PEFT model around one.
        pattern: Who sees whom, such as `SegmentAttention(256)`, or a pattern of one's own. None puts everything back.
        keep_first: How many of a text's first tokens stay in sight.
        layers: Numbers of the layers that take it. By default all, or those with a sliding window in a model that has
            both kinds. The others stay dense.
        move_first: False leaves the first tokens at their own positions.

    Raises:
        SettingError: If the model can't take the pattern; the message says why. It is then dense.
    """
    model = getattr(model, "get_base_model", lambda: model)()  # of a PEFT model
    _restore(model)
    if pattern is None:
        return
    require(keep_first >= 0, "keep_first", keep_first, "set it to 0 or more")
    is_causal = pattern.in_window(1 << 40).history_len == 0
    require(is_causal, "pattern", pattern, "its first positions see what follows; a language model needs a causal one")
    previous = model.config._attn_implementation
    try:
        model.set_attn_implementation(_NAME)
        chosen = _chosen(model, probe(model, partial(_run, model)), layers)
        turns = all(one.turns is not None for one in chosen)
        remedy = f"{type(model).__name__} has positions that don't turn (learnt ones, say); set it to False"
        require(turns or not move_first or keep_first == 0, "move_first", move_first, remedy)
    except BaseException:
        model.set_attn_implementation(previous)
        raise
    shared: dict[tuple[Rotation | None, int], LayerAttention] = {}  # what layers have in common is computed once
    for one in chosen:
        rotation = one.rotation if move_first else None
        attention = LayerAttention(pattern, keep_first, rotation, one.n_heads)
        one.module.__dict__["llp_attention"] = shared.setdefault((rotation, one.n_heads), attention)
    model.__dict__["_llp_previous"] = previous
    model.__dict__["_llp_hook"] = model.register_forward_pre_hook(_refuse_weights, with_kwargs=True)
    model.__dict__["_prepare_cache_for_generation"] = MethodType(_prepare_cache, model)


def _restore(model: PreTrainedModel) -> None:
    previous = model.__dict__.pop("_llp_previous", None)
    if previous is not None:
        model.set_attn_implementation(previous)
        model.__dict__.pop("_prepare_cache_for_generation")
        model.__dict__.pop("_llp_hook").remove()
        for module in model.modules():
            module.__dict__.pop("llp_attention", None)


def _chosen(model: PreTrainedModel, found: list[Probed], layers: Sequence[int] | None) -> list[Probed]:
    """The layers that take the pattern."""
    if layers is None:
        kinds = getattr(model.config.get_text_config(), "layer_types", None) or []
        sliding = [one for one in found if one.layer < len(kinds) and kinds[one.layer] == "sliding_attention"]
        return sliding or found
    numbers = [one.layer for one in found]
    is_known = len(layers) > 0 and set(layers) <= set(numbers)
    require(is_known, "layers", list(layers), f"name some of the attention layers: {numbers}")
    return [one for one in found if one.layer in layers]


def _run(model: PreTrainedModel, tokens: Tensor, positions: Tensor) -> list[Call]:
    """The calls of the attention function in a forward pass in which it returns zeros."""
    training = [module for module in model.modules() if module.training]
    calls: list[Call] = []
    token = _calls.set(calls)
    try:
        model.eval()
        with torch.no_grad():
            model(input_ids=tokens, position_ids=positions, use_cache=False)
    except (TypeError, AttributeError, IndexError) as error:
        raise refused(model, f"{type(error).__name__}: {error}") from error
    finally:
        _calls.reset(token)
        for module in training:
            module.training = True
    return calls


def _refuse_weights(model: nn.Module, args: tuple[Any, ...], arguments: dict[str, Any]) -> None:
    remedy = "a pattern is computed without the weights of all pairs; call set_attention(model, None) to see them"
    require(not arguments.get("output_attentions"), "output_attentions", True, remedy)


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Rows | Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls in each layer: (B, H, Q, D) -> (B, Q, H, D)."""
    calls = _calls.get()
    if calls is not None:
        calls.append(Call(module, query, key, value, isinstance(attention_mask, Rows), kwargs))
        return query.new_zeros(*query.shape[:-1], value.shape[-1]).transpose(1, 2), None
    attention: LayerAttention | None = module.__dict__.get("llp_attention")
    if attention is None:
        mask = attention_mask.dense_mask() if isinstance(attention_mask, Rows) else attention_mask
        return _DENSE(module, query, key, value, mask, dropout=dropout, scaling=scaling, **kwargs)
    require(dropout == 0.0, "attention dropout", dropout, "patterns are computed without; set it to 0 in the config")
    if not isinstance(attention_mask, Rows):
        remedy = "the pattern makes its own masks; give none, or one of shape (batch, tokens)"
        raise SettingError("attention_mask", "of four dimensions", remedy)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    output = attend(attention, (query, key, value), attention_mask, scale, kwargs.get("position_ids"))
    return output.transpose(1, 2), None


def _prepare_cache(
    model: PreTrainedModel,
    generation_config: GenerationConfig,
    model_kwargs: dict[str, Any],
    generation_mode: GenerationMode,
    *args: object,
) -> None:
    """Where `generate` makes its cache: a private method of transformers, none of whose options takes a class.

    Rows with padding, and ways to generate that go back in the text, get a cache that grows.
    """
    given = {name for name, value in model_kwargs.items() if value is not None}
    prepare: Callable[..., None] = getattr(type(model), "_prepare_cache_for_generation")  # noqa: B009
    prepare(model, generation_config, model_kwargs, generation_mode, *args)
    made = [name for name in model_kwargs if type(model_kwargs[name]) is DynamicCache and name not in given]
    mask = model_kwargs.get("attention_mask")
    is_local = generation_mode.value not in _GOES_BACK and (mask is None or bool(mask.all()))
    for name in made:
        model_kwargs[name] = LocalCache(model) if is_local else DynamicCache()
    if made and is_local and "inputs_embeds" not in model_kwargs and (mask is None or mask.shape[1] > _PIECE_LEN):
        generation_config.prefill_chunk_size = generation_config.prefill_chunk_size or _PIECE_LEN


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, partial(make_rows, _DENSE_MASK))
