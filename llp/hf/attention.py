"""`set_attention`: replace the attention of a causal language model of transformers by a pattern."""

from collections.abc import Callable, Sequence
from types import MethodType
from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, GenerationConfig, PreTrainedModel
from transformers.generation import GenerationMode

from llp.decoder.patterns import AttentionPattern
from llp.errors import SettingError, require
from llp.hf.cache import LocalCache
from llp.hf.layer import LayerAttention, attend
from llp.hf.rotation import Probed, probe
from llp.hf.rows import Rows

_NAME = __name__.replace(".", "_")  # differs from that of the copy of this code in an exported folder
_DENSE, _DENSE_MASK = AttentionInterface()["sdpa"], AttentionMaskInterface()["sdpa"]
_PIECE_LEN = 4096  # tokens of a prompt that are read at a time
_GOES_BACK = ("assisted_generation", "contrastive_search")  # modes of generation that discard tokens again


def set_attention(
    model: PreTrainedModel,
    pattern: AttentionPattern | None,
    keep_first: int = 4,
    layers: Sequence[int] | None = None,
    move_first: bool = True,
) -> None:
    """Make a causal language model attend by `pattern` in `model(...)`, in `model.generate(...)` and in training.

    Weights are not changed. A query also sees the first `keep_first` tokens of its text, which trained models use as an
    attention sink (StreamingLLM, arXiv 2309.17453). If the pattern no longer shows them, they are moved to right before
    the first position that it shows, so that no distance exceeds those within the pattern. `generate` uses a
    `LocalCache`, and reads long prompts in pieces.

    Args:
        model: A model of transformers, or a PEFT model that wraps one.
        pattern: An attention pattern, such as `SegmentAttention(256)`. None restores the model's own attention.
        keep_first: Number of first tokens of a text that stay in sight.
        layers: Indices of the layers that use the pattern; the others stay dense. Default: all layers, or only those
            with a sliding window in a model that has both kinds.
        move_first: Whether the first tokens are moved; if False, they stay at their own positions.

    Raises:
        SettingError: If the model does not support the pattern; the message says why. The model's own attention is then
            restored.
    """
    model = getattr(model, "get_base_model", lambda: model)()  # unwraps a PEFT model
    _restore(model)
    if pattern is None:
        return
    require(keep_first >= 0, "keep_first", keep_first, "set it to 0 or more")
    pattern.check_definition()
    is_causal = pattern.in_window(1 << 40).history_len == 0
    require(is_causal, "pattern", pattern, "its first positions see later ones; give a causal pattern")
    chosen = _chosen(probe(model), layers, getattr(model.config.get_text_config(), "layer_types", None))
    remedy = f"the positions of {type(model).__name__} are not rotary, so tokens can't be moved; set it to False"
    can_move = all(one.rotation is not None for one in chosen)
    require(can_move or not move_first or keep_first == 0, "move_first", move_first, remedy)
    for one in chosen:
        rotation = one.rotation if move_first else None
        one.module.__dict__["llp_attention"] = LayerAttention(pattern, keep_first, rotation, one.n_heads)
    model.__dict__["_llp_previous"] = model.config._attn_implementation
    model.set_attn_implementation(_NAME)
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


def _chosen(found: list[Probed], layers: Sequence[int] | None, kinds: Sequence[str] | None) -> list[Probed]:
    """The layers that use the pattern; `kinds` are the `layer_types` of the configuration, if it has some."""
    if layers is None:
        sliding = [one for one in found if kinds and kinds[one.layer] == "sliding_attention"]
        return sliding or found
    numbers = [one.layer for one in found]
    is_known = len(layers) > 0 and set(layers) <= set(numbers)
    require(is_known, "layers", list(layers), f"choose from the attention layers {numbers}")
    return [one for one in found if one.layer in layers]


def _refuse_weights(model: nn.Module, args: tuple[Any, ...], arguments: dict[str, Any]) -> None:
    remedy = "with a pattern, attention weights are never computed; call set_attention(model, None) to get them"
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
    """The attention function that transformers calls in each layer: (B, H, Q, D) -> (B, Q, H, D)."""
    attention: LayerAttention | None = module.__dict__.get("llp_attention")
    if attention is None:
        mask = _DENSE_MASK(**attention_mask.arguments) if isinstance(attention_mask, Rows) else attention_mask
        return _DENSE(module, query, key, value, mask, dropout=dropout, scaling=scaling, **kwargs)
    require(dropout == 0.0, "attention dropout", dropout, "patterns don't support it; set it to 0 in the configuration")
    if not isinstance(attention_mask, Rows):
        remedy = "the pattern has its own mask; give no mask, or one of shape (batch, tokens)"
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
    """Override the private method in which `generate` creates its cache; no public option accepts a class of cache.

    Rows with padding, and modes of generation that discard tokens again, get a cache that grows.
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
AttentionMaskInterface.register(_NAME, Rows)
