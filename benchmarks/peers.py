"""Attention patterns by name: ours, LLP's in its published formulation, and those of two packages."""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import llp
from llp.decoder.patterns import AttentionPattern, CausalAttention, Layer, SegmentAttention, SlidingWindowAttention


@dataclass(frozen=True)
class PublishedSegments(SegmentAttention):
    """LLP as it was published: a loop over segments, products by einsum, an explicit mask."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, dropout_p: float = 0.0) -> Tensor:
        outputs = []
        for start in range(0, query.shape[2], self.segment_len):
            first, stop = max(0, start - self.segment_len), start + self.segment_len
            scores = torch.einsum("bhid,bhjd->bhij", query[:, :, start:stop], key[:, :, first:stop])
            scores = scores * query.shape[-1] ** -0.5
            mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).triu(1 + start - first)
            weights = scores.masked_fill(mask, -torch.inf).softmax(dim=-1)
            outputs.append(torch.einsum("bhij,bhjd->bhid", weights, value[:, :, first:stop]))
        return torch.cat(outputs, dim=2)  # (B, H, N, D)


@dataclass(frozen=True)
class LocalAttention(SegmentAttention):
    """The package `local-attention`, looking one window back: the pattern of LLP."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, dropout_p: float = 0.0) -> Tensor:
        attended: Tensor = local_attention(self.segment_len)(query, key, value)
        return attended


@cache
def local_attention(segment_len: int) -> nn.Module:
    """The package's module, on (B, H, N, D)."""
    from local_attention import LocalAttention as Package

    return Package(window_size=segment_len, causal=True, look_backward=1, use_rotary_pos_emb=False)


def attentions(segment_len: int) -> dict[str, AttentionPattern]:
    """The patterns that are compared; all but the Transformer's have about as many pairs as LLP's."""
    return {
        "LLP": SegmentAttention(segment_len),
        "SlidingWindow": SlidingWindowAttention(equal_window(segment_len)),
        "Transformer": CausalAttention(),
        "published LLP": PublishedSegments(segment_len),
        "local-attention": LocalAttention(segment_len),
    }


def equal_window(segment_len: int) -> int:
    """The sliding window with as many pairs a query as LLP, which has 1.5 segments and half a position on average."""
    return (3 * segment_len + 1) // 2


class LikeLLP(llp.LLP):
    """LLP with a peer's attention in its layers: everything else is ours, so that only the attention differs."""

    def __init__(self, vocab_size: int, pattern: AttentionPattern, **kwargs: Any) -> None:
        super().__init__(vocab_size, **kwargs)
        self.pattern = pattern

    def layers(self) -> list[Layer]:
        return [Layer(self.pattern)] * self.n_layers


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
