"""FlexAttention for patterns without a faster implementation: a fused kernel for any mask, on a GPU."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

Visible = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Maps heads, positions of queries and positions of keys to booleans."""


def takes_flex(query: Tensor, dropout_p: float) -> bool:
    """Whether to use FlexAttention for a query (B, H, Q, D): on a GPU, without dropout, which it doesn't support."""
    return query.device.type == "cuda" and dropout_p == 0.0


def flex_masked_attention(visible: Visible, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention under the mask `visible`, where the queries are the last Q of N positions.

    `query` is (B, H, Q, D), `key` and `value` are (B, H, N, D), and the output is (B, H, Q, D).
    """
    n_heads, n_queries, n_keys = query.shape[1], query.shape[2], key.shape[2]
    blocks = _block_mask(visible, n_heads, n_queries, n_keys, query.device)
    attended: Tensor = _attend(query.device.type)(query, key, value, block_mask=blocks)
    return attended


@lru_cache(maxsize=32)
def _block_mask(visible: Visible, n_heads: int, n_queries: int, n_keys: int, device: torch.device) -> BlockMask:
    # A tensor, because an integer would be compiled into the kernel, and each length would need its own kernel.
    n_before = torch.tensor(n_keys - n_queries, device=device)

    def mask_mod(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return visible(head, query + n_before, key)

    return create_block_mask(mask_mod, None, n_heads, n_queries, n_keys, device=str(device))


@lru_cache(maxsize=2)
def _attend(device_type: str) -> Any:
    """FlexAttention, compiled to a fused kernel on a GPU. On a CPU, where only tests use it, it is not compiled."""
    return torch.compile(flex_attention) if device_type == "cuda" else flex_attention
