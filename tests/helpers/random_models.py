"""Random models of a few thousand parameters, and attention by explicit relative positions."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import product

import torch
import transformers
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from llp.decoder.patterns import AttentionPattern

IS_5 = transformers.__version__.startswith("5")

VOCAB_SIZE = 61
SIZES = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
HYBRID = {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"], "sliding_window": 8}
FAMILIES = {
    "llama": ("Llama", {}),
    "llama_yarn": ("Llama", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4}}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 12}),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 0, 1]}),
    "mistral": ("Mistral", {}),
    "olmo2": ("Olmo2", {}),
    "phi3": ("Phi3", {"partial_rotary_factor": 0.5}),
    "granite": ("Granite", {"attention_multiplier": 0.3}),
    "gpt_neox": ("GPTNeoX", {"rotary_pct": 0.5}),
    "starcoder2": ("Starcoder2", {"sliding_window": None}),
    "gemma3": ("Gemma3", {"head_dim": 8, **HYBRID}),
    "cohere": ("Cohere", {}),
    "glm": ("Glm", {"head_dim": 8}),
    "gpt2": ("GPT2", {}),
}
LEARNT = {"gpt2"}


def make(family: str, seed: int = 0, **settings: object) -> PreTrainedModel:
    """A model in evaluation mode, whose attention matters."""
    name, own = FAMILIES.get(family, (family, {}))
    arguments = {**SIZES, **own, **settings}
    if name == "GPT2":
        arguments |= {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
        for key in ("hidden_size", "intermediate_size", "num_key_value_heads", "num_hidden_layers"):
            del arguments[key]
    config_name = "Gemma3TextConfig" if name == "Gemma3" else f"{name}Config"
    torch.manual_seed(seed)
    model = getattr(transformers, f"{name}{'LMHeadModel' if name == 'GPT2' else 'ForCausalLM'}")(
        getattr(transformers, config_name)(**arguments)
    )
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=parameter.shape[-1] ** -0.5)
    return model.eval()


def tokens(n: int, batch: int = 1, seed: int = 1) -> Tensor:
    return torch.randint(1, VOCAB_SIZE, (batch, n), generator=torch.Generator().manual_seed(seed))


@contextmanager
def explicit_attention(
    model: PreTrainedModel, pattern: AttentionPattern, keep_first: int, layers: Sequence[int], moves: bool = True
) -> Iterator[None]:
    """The model attends by brute force, one query after the other; layers that aren't named see everything before.

    The first tokens' keys are those that the layer itself computes when it is told that they stand somewhere else.
    """
    inputs: dict[nn.Module, tuple[tuple, dict]] = {}
    other_keys: list[Tensor] | None = None

    def remember(module: nn.Module, args: tuple, kwargs: dict) -> None:
        if other_keys is None:
            inputs[module] = args, kwargs

    def keys_moved_by(module: nn.Module, shift: int) -> Tensor:
        nonlocal other_keys
        args, kwargs = inputs[module]
        hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        kind = {"layer_type": module.layer_type} if model.config.model_type == "gemma3_text" and IS_5 else {}
        is_local = getattr(module, "is_sliding", False) and hasattr(model.model, "rotary_emb_local")
        name_end = "rotary_emb_local" if is_local else "rotary_emb"
        rotary = next(part for name, part in model.named_modules() if name.endswith(name_end))
        positions = torch.arange(hidden.shape[1]).unsqueeze(0) + shift
        other_keys = []
        module(*args, **{**kwargs, "position_embeddings": rotary(hidden, positions, **kind)})
        keys, other_keys = other_keys[0], None
        return keys

    def attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
        if other_keys is not None:
            other_keys.append(key)
            return query.transpose(1, 2), None
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        n_heads, n = query.shape[1:3]
        value = value.repeat_interleave(n_heads // value.shape[1], dim=1)
        at_shift = {}  # keys (B, H, N, D)
        outputs = torch.zeros_like(query)
        for head, i in product(range(n_heads), range(n)):
            seen = list(range(i + 1))
            if module.layer_idx in layers:
                visible = pattern.visible(torch.tensor(head), torch.tensor(i), torch.arange(n))
                seen = [j for j in range(n) if visible[j]]
            start = min(seen) if module.layer_idx in layers else 0
            first = list(range(min(keep_first, start)))
            shift = max(0, start - keep_first) if moves else 0
            for one in {0, shift} - set(at_shift):
                keys = keys_moved_by(module, one) if one else key
                at_shift[one] = keys.repeat_interleave(n_heads // keys.shape[1], dim=1)
            keys = torch.cat((at_shift[shift][:, head, first], at_shift[0][:, head, seen]), dim=1)  # (B, n, D)
            weights = (keys @ query[:, head, i, :, None] * scaling).softmax(dim=1)  # (B, n, 1)
            outputs[:, head, i] = (weights * value[:, head, first + seen]).sum(dim=1)
        return outputs.transpose(1, 2), None

    AttentionInterface.register("explicit", attention)
    AttentionMaskInterface.register("explicit", lambda **kwargs: None)
    previous = model.config._attn_implementation
    layers_with_attention = [module for module in model.modules() if isinstance(module.__dict__.get("layer_idx"), int)]
    hooks = [module.register_forward_pre_hook(remember, with_kwargs=True) for module in layers_with_attention]
    model.set_attn_implementation("explicit")
    try:
        yield
    finally:
        model.set_attn_implementation(previous)
        for hook in hooks:
            hook.remove()
