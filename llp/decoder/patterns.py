"""Who attends to whom: the attention patterns, as functions on (batch, heads, positions, head width).

Every pattern takes `query` (B, H, Q, D), `key` and `value` (B, H, N, D) with Q <= N, where the queries are the last Q
of the N positions, and returns (B, H, Q, D). Scores are scaled by 1 / sqrt(D). Each pattern is followed by a function
that counts its query-key pairs for Q queries and N keys; FLOPs are computed from it.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from llp.decoder.merged_attention import MergedAttention, can_merge, segment_pair_parts, tail_parts


def causal_attention(query: Tensor, key: Tensor, value: Tensor, dropout_p: float = 0.0) -> Tensor:
    """Lower-right causal: query i of Q sees the keys 0 .. i + (N - Q), so that the last query sees every key.

    With Q = N this is the dense causal attention of a Transformer.
    """
    n_queries, n_keys = query.shape[-2], key.shape[-2]
    if n_queries == n_keys:
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout_p, is_causal=True)
    if can_merge(query, dropout_p):
        return MergedAttention.apply(query, key, value, tail_parts)
    if torch.compiler.is_compiling():  # which can't trace `causal_lower_right`
        mask = torch.ones(n_queries, n_keys, dtype=torch.bool, device=query.device).tril(n_keys - n_queries)
    else:
        mask = causal_lower_right(n_queries, n_keys)  # `is_causal=True` would be upper-left here: another mask
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout_p)


def causal_count(n_queries: int, n_keys: int) -> int:
    """The number of query-key pairs in `causal_attention`, without the masked ones."""
    return n_queries * n_keys - n_queries * (n_queries - 1) // 2


def segment_pair_attention(
    query: Tensor, key: Tensor, value: Tensor, segment_len: int, dropout_p: float = 0.0
) -> Tensor:
    """Long LoRA Perceiver: segment k sees all of segment k - 1, and itself causally; segment 0 sees only itself.

    Q must be N. The sequence is cut into segments of `segment_len`, from its first position on. All pairs of segments
    form one batch of small lower-right causal problems (`segment_len` queries, twice as many keys): O(N segment_len).

    Source: arXiv 2412.06106, section on the Long LoRA Perceiver; the segments are those of LongLoRA, arXiv 2309.12307.
    """
    n, padding = query.shape[2], -query.shape[2] % segment_len
    if n <= segment_len:
        return causal_attention(query, key, value, dropout_p)
    if padding:  # a shorter last segment is padded at its end; causality hides the padding from every real query
        query, key, value = (F.pad(x, (0, 0, 0, padding)) for x in (query, key, value))
    # (B, H, S M, D) -> (B, S, H, M, D)
    query, key, value = (x.unflatten(2, (-1, segment_len)).transpose(1, 2) for x in (query, key, value))
    if can_merge(query, dropout_p):
        output = _merged_pairs(query, key, value)  # (B, S, H, M, D)
    else:
        output = _copied_pairs(query, key, value, dropout_p)  # (B, S, H, M, D)
    output = output.transpose(1, 2).flatten(2, 3)  # (B, H, S M, D)
    return output[:, :, :n] if padding else output


def _copied_pairs(query: Tensor, key: Tensor, value: Tensor, dropout_p: float) -> Tensor:
    """Segment pairs by definition: the keys of two neighbours side by side; all tensors are (B, S, H, M, D)."""
    batch = query.shape[0]
    key_pairs, value_pairs = (torch.cat((x[:, :-1], x[:, 1:]), dim=-2) for x in (key, value))  # (B, S - 1, H, 2 M, D)
    first = causal_attention(query[:, 0], key[:, 0], value[:, 0], dropout_p)  # (B, H, M, D)
    later = causal_attention(
        query[:, 1:].flatten(0, 1), key_pairs.flatten(0, 1), value_pairs.flatten(0, 1), dropout_p
    )  # (B (S - 1), H, M, D)
    return torch.cat((first.unsqueeze(1), later.unflatten(0, (batch, -1))), dim=1)


def _merged_pairs(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The same without copies: every segment sees itself, and all but the first of a sample see the one before."""
    batch = query.shape[0]
    query, key, value = (x.flatten(0, 1) for x in (query, key, value))
    output = MergedAttention.apply(query, key, value, segment_pair_parts, batch)  # (B S, H, M, D)
    return output.unflatten(0, (batch, -1))


def segment_pair_count(n_queries: int, n_keys: int, segment_len: int) -> int:
    """The number of query-key pairs in `segment_pair_attention`."""
    whole, rest = divmod(n_queries, segment_len)
    own = whole * causal_count(segment_len, segment_len) + causal_count(rest, rest)
    return own + max(0, n_queries - segment_len) * segment_len


def history_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    latent_len: int,
    segment_len: int | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """The latents, the last `latent_len` positions, see everything, lower-right causally; the history sees itself.

    The history's own attention has no mask. With `segment_len` the history is cut into segments from its first
    position on, and each sees only itself. Q is N, or `latent_len` if only the latents query.

    Source: arXiv 2412.06106, enhancements V1 (double attention) and V2 (split attention).
    """
    n_latents = min(latent_len, key.shape[-2])
    n_history = query.shape[-2] - n_latents  # 0 if only the latents query
    latents = causal_attention(query[:, :, n_history:], key, value, dropout_p)  # (B, H, L, D)
    if n_history == 0:
        return latents
    query, key, value = query[:, :, :n_history], key[:, :, :n_history], value[:, :, :n_history]
    attended = segment_attention(query, key, value, segment_len or n_history, dropout_p)
    return torch.cat((attended, latents), dim=2)  # (B, H, N, D)


def history_count(n_queries: int, n_keys: int, latent_len: int, segment_len: int | None = None) -> int:
    """The number of query-key pairs in `history_attention`."""
    n_latents = min(latent_len, n_keys)
    n_history = n_queries - n_latents
    whole, rest = divmod(n_history, segment_len or max(1, n_history))
    return causal_count(n_latents, n_keys) + whole * (segment_len or n_history) ** 2 + rest**2


def segment_attention(query: Tensor, key: Tensor, value: Tensor, segment_len: int, dropout_p: float = 0.0) -> Tensor:
    """Each segment of `segment_len` positions sees itself, without a mask; the last one may be shorter. Q must be N."""
    batch, n = query.shape[0], query.shape[2]
    n_whole = n - n % segment_len

    def fold(x: Tensor) -> Tensor:  # the whole segments into the batch: (B S, H, M, D)
        return x[:, :, :n_whole].unflatten(2, (-1, segment_len)).transpose(1, 2).flatten(0, 1)

    outputs = []
    if n_whole:
        attended = F.scaled_dot_product_attention(fold(query), fold(key), fold(value), dropout_p=dropout_p)
        outputs.append(attended.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2, 3))  # (B, H, S M, D)
    if n_whole < n:
        query, key, value = query[:, :, n_whole:], key[:, :, n_whole:], value[:, :, n_whole:]
        outputs.append(F.scaled_dot_product_attention(query, key, value, dropout_p=dropout_p))
    return torch.cat(outputs, dim=2)  # (B, H, N, D)


def drop_history(key: Tensor, value: Tensor, n_history: int, share: float) -> tuple[Tensor, Tensor]:
    """Drop a share of the first `n_history` of N positions: equally many in each sample, drawn independently.

    Perceiver AR's cross-attend (prefix) dropout, arXiv 2202.07765. The keys are already rotated, so those that remain
    keep their positions. `key` and `value` (B, H, N, D) -> (B, H, N - round(share * n_history), D).
    """
    batch, n = key.shape[0], key.shape[2]
    n_kept = n_history - round(share * n_history)
    kept = torch.rand(batch, n_history, device=key.device).topk(n_kept, dim=1).indices.sort(dim=1).values
    latents = torch.arange(n_history, n, device=key.device).expand(batch, -1)
    places = torch.cat((kept, latents), dim=1)[:, None, :, None].expand(-1, key.shape[1], -1, key.shape[3])
    return key.gather(2, places), value.gather(2, places)  # (B, H, n_kept + N - n_history, D)


Attend = Callable[..., Tensor]
"""An attention pattern: `attend(query, key, value, dropout_p=...)`."""


class LayerPattern(NamedTuple):
    """What an architecture specifies for one layer."""

    attend: Attend
    """The attention pattern: who attends to whom."""
    n_out: int | None = None
    """How many positions, counted from the end, query in the layer and leave it; None: all that enter."""
    history_dropout: float = 0.0
    """The share of the positions before the queries that is dropped from the keys in training."""
    pair_count: Callable[[int, int], int] = causal_count
    """Maps numbers of queries and keys to the number of their pairs, from which FLOPs are computed."""
