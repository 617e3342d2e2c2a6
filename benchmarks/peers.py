"""What others do, at the same widths: the published formulation of LLP, and two packages in our block."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import llp
from llp.decoder.patterns import LayerPattern, causal_attention, segment_pair_attention, sliding_window_attention


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


def local_attention(segment_len: int) -> Any:
    """The package `local-attention` with one window back: the pattern of LLP, on (B, H, N, D)."""
    from local_attention import LocalAttention

    module = LocalAttention(window_size=segment_len, causal=True, look_backward=1, use_rotary_pos_emb=False)
    return lambda query, key, value, dropout_p=0.0: module(query, key, value)


def equal_window(segment_len: int) -> int:
    """The sliding window with as many pairs a query as LLP, which has 1.5 segments and half a position on average."""
    return (3 * segment_len + 1) // 2


def attention_patterns(segment_len: int) -> dict[str, Any]:
    """Attention alone, each a function of query, key and value (B, H, N, D)."""
    return {
        "LLP": partial(segment_pair_attention, segment_len=segment_len),
        "SlidingWindow": partial(sliding_window_attention, window=equal_window(segment_len)),
        "Transformer": causal_attention,
        "published LLP": partial(published_segment_attention, segment_len=segment_len),
        "local-attention": local_attention(segment_len),
    }


class LikeLLP(llp.LLP):
    """LLP with a peer's attention in its layers: all else is ours, so that only the attention differs."""

    def __init__(self, vocab_size: int, attend: Any = None, **kwargs: Any) -> None:
        super().__init__(vocab_size, **kwargs)
        self.attend = attend

    def layer_pattern(self, layer: int) -> LayerPattern:
        return super().layer_pattern(layer)._replace(attend=self.attend)


def perceiver_ar_pytorch(vocab_size: int, dim: int, n_layers: int, n_heads: int, n: int, latent_len: int) -> nn.Module:
    """The package `perceiver-ar-pytorch`: one layer that reads the history, the others on the latents."""
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
