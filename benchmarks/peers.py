"""Attention patterns by name: ours, LLP's in its published formulation, and those of two packages."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import llp
from llp.decoder.patterns import (
    LayerPattern,
    causal_attention,
    causal_count,
    segment_pair_attention,
    segment_pair_count,
    sliding_window_attention,
    sliding_window_count,
)


class Attention(NamedTuple):
    """Attention alone."""

    attend: Callable[[Tensor, Tensor, Tensor], Tensor]
    """Maps query (B, H, Q, D), key and value (B, H, N, D) to (B, H, Q, D); the queries are the last Q positions."""
    pair_count: Callable[[int, int], float]
    """Maps Q and N to the number of query-key pairs in a head, without the masked ones."""
    sees: Callable[[Tensor, Tensor], Tensor]
    """Whether a query position sees a key position that is not later than itself."""


def attentions(segment_len: int) -> dict[str, Attention]:
    """The patterns that are compared; all but the Transformer's have about as many pairs as LLP's."""
    window = equal_window(segment_len)

    def sees_segment_before(query: Tensor, key: Tensor) -> Tensor:
        return query // segment_len - key // segment_len <= 1

    def like_llp(attend: Callable[..., Tensor]) -> Attention:
        return Attention(attend, partial(segment_pair_count, segment_len=segment_len), sees_segment_before)

    return {
        "LLP": like_llp(partial(segment_pair_attention, segment_len=segment_len)),
        "SlidingWindow": Attention(
            partial(sliding_window_attention, window=window),
            partial(sliding_window_count, window=window),
            lambda query, key: query - key < window,
        ),
        "Transformer": Attention(causal_attention, causal_count, lambda query, key: key <= query),
        "published LLP": like_llp(partial(published_segment_attention, segment_len=segment_len)),
        "local-attention": like_llp(
            lambda query, key, value, dropout_p=0.0: local_attention(segment_len)(query, key, value)
        ),
    }


def equal_window(segment_len: int) -> int:
    """The sliding window with as many pairs a query as LLP, which has 1.5 segments and half a position on average."""
    return (3 * segment_len + 1) // 2


def published_segment_attention(
    query: Tensor, key: Tensor, value: Tensor, segment_len: int, dropout_p: float = 0.0
) -> Tensor:
    """LLP as it was published: a loop over segments, products by einsum, an explicit mask; all are (B, H, N, D)."""
    outputs = []
    for start in range(0, query.shape[2], segment_len):
        first, stop = max(0, start - segment_len), start + segment_len
        scores = torch.einsum("bhid,bhjd->bhij", query[:, :, start:stop], key[:, :, first:stop])
        scores = scores * query.shape[-1] ** -0.5
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).triu(1 + start - first)
        weights = scores.masked_fill(mask, -torch.inf).softmax(dim=-1)
        outputs.append(torch.einsum("bhij,bhjd->bhid", weights, value[:, :, first:stop]))
    return torch.cat(outputs, dim=2)


@cache
def local_attention(segment_len: int) -> nn.Module:
    """The package `local-attention`, looking one window back: the pattern of LLP, on (B, H, N, D)."""
    from local_attention import LocalAttention

    return LocalAttention(window_size=segment_len, causal=True, look_backward=1, use_rotary_pos_emb=False)


class LikeLLP(llp.LLP):
    """LLP with a peer's attention in its layers: everything else is ours, so that only the attention differs."""

    def __init__(self, vocab_size: int, attend: Callable[..., Tensor] | None = None, **kwargs: Any) -> None:
        super().__init__(vocab_size, **kwargs)
        self.attend = attend

    def layer_pattern(self, layer: int) -> LayerPattern:
        return super().layer_pattern(layer)._replace(attend=self.attend)


def perceiver_ar_pytorch(vocab_size: int, dim: int, n_layers: int, n_heads: int, n: int, latent_len: int) -> nn.Module:
    """The package `perceiver-ar-pytorch`: one layer that reads the history, and the others on the latents."""
    from perceiver_ar_pytorch import PerceiverAR

    return PerceiverAR(
        num_tokens=vocab_size,
        dim=dim,
        depth=n_layers - 1,
        heads=n_heads,
        dim_head=dim // n_heads,
        max_seq_len=n,
        cross_attn_seq_len=n - latent_len,
    )
