"""`set_attention`: a causal language model of transformers reads with another attention pattern."""

from collections.abc import Sequence
from contextvars import ContextVar
from functools import partial
from types import MethodType

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, DynamicCache, GenerationConfig, PreTrainedModel
from transformers.generation import GenerationMode

from llp.decoder.patterns import AttentionPattern
from llp.errors import require
from llp.hf.cache import LocalCache
from llp.hf.layer import LayerAttention, attend
from llp.hf.rotation import Call, Probed, probe, refused
from llp.hf.rows import Rows, make_rows

_NAME = "llp"
_PIECE_LEN = 4096  # of a prompt, at a time
_FORWARD_ONLY = (
    GenerationMode.GREEDY_SEARCH,
    GenerationMode.SAMPLE,
    GenerationMode.BEAM_SEARCH,
    GenerationMode.BEAM_SAMPLE,
)
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
        SettingError: If the model can't take the pattern; the message says why. It is then as it was.
    """
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    _put_back(model)
    if pattern is None:
        return
    _check(pattern, keep_first)
    previous = model.config._attn_implementation
    try:
        model.set_attn_implementation(_NAME)
        found = probe(model, partial(_run, model))
        chosen = _chosen_layers(model, found, layers)
        require(
            not (move_first and keep_first) or all(found[number].turns is not None for number in chosen),
            "move_first",
            move_first,
            f"{type(model).__name__} has positions that don't turn (learnt ones, say); set it to False, or keep_first to 0",
        )
    except BaseException:
        model.set_attn_implementation(previous)
        raise
    shared: dict[object, LayerAttention] = {}
    for number in chosen:
        rotation = found[number].rotation if move_first else None
        settings = LayerAttention(pattern, keep_first, rotation, found[number].n_heads)
        found[number].module.llp_attention = shared.setdefault((rotation, settings.n_heads), settings)
    model._llp_previous = previous
    model._prepare_cache_for_generation = MethodType(_prepare_cache, model)


def _put_back(model: PreTrainedModel) -> None:
    if not hasattr(model, "_llp_previous"):
        return
    model.set_attn_implementation(model._llp_previous)
    for module in model.modules():
        module.__dict__.pop("llp_attention", None)
    del model._llp_previous, model._prepare_cache_for_generation


def _check(pattern: AttentionPattern, keep_first: int) -> None:
    require(keep_first >= 0, "keep_first", keep_first, "set it to 0 or more")
    try:
        is_causal = pattern.history_len == 0
    except ValueError:
        is_causal = False
    require(is_causal, "pattern", pattern, "its first positions see what follows; a language model needs a causal one")


def _chosen_layers(model: PreTrainedModel, found: list[Probed], layers: Sequence[int] | None) -> list[int]:
    """Numbers of the attention layers that take the pattern, counted among those that were found."""
    numbers = [one.module.layer_idx for one in found]
    if layers is None:
        kinds = getattr(model.config.get_text_config(), "layer_types", None) or ["full_attention"] * (max(numbers) + 1)
        sliding = [number for number, layer in enumerate(numbers) if kinds[layer] == "sliding_attention"]
        return sliding or list(range(len(found)))
    unknown = sorted(set(layers) - set(numbers))
    require(not unknown and len(layers) > 0, "layers", list(layers), f"the attention layers are {numbers}")
    return [number for number, layer in enumerate(numbers) if layer in layers]


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


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Rows | Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: object,
) -> tuple[Tensor, None]:
    """What transformers calls in each layer: (B, H, Q, D) -> (B, Q, H, D)."""
    calls = _calls.get()
    if calls is not None:
        is_rows = isinstance(attention_mask, Rows)
        calls.append(Call(module, query.shape[1], key.clone(), value.shape[-1], is_rows, kwargs))
        return query.new_zeros(*query.shape[:-1], value.shape[-1]).transpose(1, 2), None
    settings: LayerAttention | None = getattr(module, "llp_attention", None)
    if settings is None:
        mask = attention_mask.dense_mask() if isinstance(attention_mask, Rows) else attention_mask
        dense = AttentionInterface()["sdpa"]
        return dense(module, query, key, value, mask, dropout=dropout, scaling=scaling, **kwargs)
    remedy = "the pattern makes its own masks; give none, or one of shape (batch, tokens)"
    require(isinstance(attention_mask, Rows), "attention_mask", "of four dimensions", remedy)
    require(dropout == 0.0, "attention dropout", dropout, "the pattern's kernels have none; set it to 0 in the config")
    output = attend(settings, query, key, value, attention_mask, scaling, kwargs.get("position_ids"))
    return output.transpose(1, 2), None


def _prepare_cache(
    model: PreTrainedModel,
    generation_config: GenerationConfig,
    model_kwargs: dict[str, object],
    generation_mode: GenerationMode,
    *args: object,
) -> None:
    """Where `generate` makes its cache: a private method of transformers, none of whose options takes a class.

    Rows with padding, and ways to generate that go back in the text, get a cache that grows.
    """
    given = list(model_kwargs.values())
    type(model)._prepare_cache_for_generation(model, generation_config, model_kwargs, generation_mode, *args)
    made = [name for name, cache in model_kwargs.items() if type(cache) is DynamicCache and cache not in given]
    mask = model_kwargs.get("attention_mask")
    is_local = generation_mode in _FORWARD_ONLY and (mask is None or bool(mask.all()))
    for name in made:
        model_kwargs[name] = LocalCache(model) if is_local else DynamicCache()
    if made and is_local and "inputs_embeds" not in model_kwargs and (mask is None or mask.shape[1] > _PIECE_LEN):
        generation_config.prefill_chunk_size = generation_config.prefill_chunk_size or _PIECE_LEN


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, partial(make_rows, dense_mask=AttentionMaskInterface()["sdpa"]))
