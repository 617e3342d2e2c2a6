"""Attention patterns in causal language models of transformers: `set_attention(model, pattern)`."""

try:
    from llp.hf.attention import set_attention
    from llp.hf.cache import LocalCache
except ModuleNotFoundError as error:
    remedy = 'pip install "long-lora-perceiver[pretrained]"'
    raise ModuleNotFoundError(f"llp.hf needs the package {error.name}; run: {remedy}", name=error.name) from error

__all__ = ["LocalCache", "set_attention"]
