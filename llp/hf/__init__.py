"""The family's attention in causal language models of transformers: `set_attention(model, pattern)`."""

from llp.hf.attention import set_attention
from llp.hf.cache import LocalCache

__all__ = ["LocalCache", "set_attention"]
