"""Random models of a few thousand parameters, and attention by explicit relative positions."""

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

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
    name, own = FAMILIES[family] if family in FAMILIES else (family, {})
    arguments = {**SIZES, **own, **settings}
    if name == "GPT2":
        arguments |= {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64}
        for key in ("hidden_size", "intermediate_size", "num_key_value_heads", "num_hidden_layers"):
            del arguments[key]
    transformers = importlib.import_module("transformers")
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
def explicit_attention(model: PreTrainedModel, pattern: object, keep_first: int, layers: list[int], moves: bool) -> Iterator[None]:
    """The model attends by brute force: one query after the other, each first token's key computed anew where it stands.

    A layer's keys at other positions are those that the layer itself computes when it is given these positions.
    """
    state: dict[str, object] = {"moved": None}
    calls: dict[object, tuple] = {}

    def remember(module, args, kwargs):
        if state["moved"] is None:
            calls[module] = args, kwargs

    def attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
        if state["moved"] is not None:
            state["moved"].append(key)
            return query.transpose(1, 2), None
        scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        groups = query.shape[1] // key.shape[1]
        n = query.shape[2]
        output = torch.zeros_like(query)
        moved_keys = {0: key}
        for head in range(query.shape[1]):
            for i in range(n):
                if module.layer_idx in layers:
                    seen = pattern.visible(torch.tensor(head), torch.tensor(i), torch.arange(n)).nonzero().flatten().tolist()
                else:
                    seen = [j for j in range(i + 1)]
                keys = [key[:, head // groups, j] for j in seen]
                values = [value[:, head // groups, j] for j in seen]
                if module.layer_idx in layers:
                    start = min(seen)
                    shift = max(0, start - keep_first) if moves else 0
                    if shift not in moved_keys:
                        moved_keys[shift] = key_at(module, shift)
                    for j in range(min(keep_first, start)):
                        keys.append(moved_keys[shift][:, head // groups, j])
                        values.append(value[:, head // groups, j])
                scores = (torch.stack(keys, 1) @ query[:, head, i].unsqueeze(-1)).squeeze(-1) * scaling
                output[:, head, i] = (scores.softmax(-1).unsqueeze(1) @ torch.stack(values, 1)).squeeze(1)
        return output.transpose(1, 2), None

    def key_at(module, shift):
        args, kwargs = calls[module]
        hidden = kwargs.get("hidden_states", args[0] if args else None)
        positions = torch.arange(hidden.shape[1]).unsqueeze(0) + shift
        rotary = next(part for name, part in model.named_modules() if name.endswith("rotary_emb"))
        type_ = [getattr(module, "layer_type", None)] if hasattr(rotary, "layer_types") else []
        if hasattr(module, "is_sliding") and not type_ and hasattr(model.model, "rotary_emb_local") and module.is_sliding:
            rotary = model.model.rotary_emb_local
        state["moved"] = []
        embeddings = rotary(hidden, positions, *type_)
        module(*args, **{**kwargs, "position_embeddings": embeddings})
        key, state["moved"] = state["moved"][0], None
        return key

    AttentionInterface.register("explicit", attention)
    AttentionMaskInterface.register("explicit", lambda **kwargs: None)
    previous = model.config._attn_implementation
    hooks = [
        module.register_forward_pre_hook(remember, with_kwargs=True)
        for module in model.modules()
        if hasattr(module, "layer_idx") and "Attention" in type(module).__name__
    ]
    model.set_attn_implementation("explicit")
    try:
        yield
    finally:
        model.set_attn_implementation(previous)
        for hook in hooks:
            hook.remove()
