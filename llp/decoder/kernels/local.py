"""Fast implementations of local attention patterns, each tested against the definition of its pattern.

Every function takes `query` (B, H, Q, D), `key` and `value` (B, H, N, D) with Q <= N, where the queries are the last Q
of the N positions, and returns (B, H, Q, D). Scores are scaled by 1 / sqrt(D). The patterns are defined in
`llp.decoder.patterns`.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from llp.decoder.kernels.fused import lower_right_flash, takes_flash
from llp.decoder.kernels.merged import can_merge, merged_attention, segment_parts, tail_parts
from llp.decoder.kernels.windowed import WindowedAttention, band_mask

Attend = Callable[..., Tensor]
"""An attention function: `attend(query, key, value, dropout_p=...)`."""


def causal_attention(query: Tensor, key: Tensor, value: Tensor, dropout_p: float = 0.0) -> Tensor:
    """Lower-right causal: query i of Q sees the keys 0 .. i + (N - Q), so that the last query sees every key.

    With Q = N this is the dense causal attention of a Transformer.
    """
    n_queries, n_keys = query.shape[-2], key.shape[-2]
    if n_queries == n_keys:
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout_p, is_causal=True)
    if n_queries == 1:  # nothing is masked
        return F.scaled_dot_product_attention(query, key, value, dropout_p=dropout_p)
    if takes_flash(query):
        return lower_right_flash(query, key, value, dropout_p)
    if can_merge(query, dropout_p):
        return merged_attention(query, key, value, tail_parts)
    if torch.compiler.is_compiling():  # the compiler can't trace `causal_lower_right`
        mask = torch.ones(n_queries, n_keys, dtype=torch.bool, device=query.device).tril(n_keys - n_queries)
    else:
        mask = causal_lower_right(n_queries, n_keys)  # `is_causal=True` would be upper-left
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout_p)


def segment_pair_attention(
    query: Tensor, key: Tensor, value: Tensor, segment_len: int, look_back: int = 1, dropout_p: float = 0.0
) -> Tensor:
    """Long LoRA Perceiver: segment k sees the `look_back` whole segments before it, and itself causally.

    The N positions are cut into segments of `segment_len`, from the first position on. With `look_back` 1, pairs of
    neighbouring segments form one batch of small lower-right causal problems (`segment_len` queries, twice as many
    keys). With 2 these are triples, with 0 single segments. The cost is O(N segment_len).

    Source: arXiv 2412.06106, section on the Long LoRA Perceiver; the segments are those of LongLoRA, arXiv 2309.12307.
    """
    n_queries, n_before = query.shape[2], look_back * segment_len
    if n_queries < key.shape[2]:
        first_segment = (key.shape[2] - n_queries) // segment_len
        key, value = _without_first(max(0, first_segment - look_back) * segment_len, key, value)
        if key.shape[2] <= n_before + segment_len:  # the last query sees all keys
            return causal_attention(query, key, value, dropout_p)
    if key.shape[2] <= max(n_before, segment_len):
        return causal_attention(query, key, value, dropout_p)
    padding = -key.shape[2] % segment_len  # of a shorter last segment; causality hides it from every real query
    query, key, value = _aligned(query, key, value, padding)
    if can_merge(query, dropout_p):
        output = _merged_segments(query, key, value, segment_len, look_back)
    else:
        output = _in_blocks(causal_attention, query, key, value, segment_len, n_before, dropout_p)
    return _unaligned(output, n_queries, padding)


def _merged_segments(query: Tensor, key: Tensor, value: Tensor, segment_len: int, look_back: int) -> Tensor:
    """Segment attention without copies, with parts for earlier segments; all tensors are (B, H, N, D)."""
    batch = query.shape[0]
    # (B, H, S M, D) -> (B S, H, M, D)
    query, key, value = (x.unflatten(2, (-1, segment_len)).transpose(1, 2).flatten(0, 1) for x in (query, key, value))
    output = merged_attention(query, key, value, segment_parts, batch, look_back)  # (B S, H, M, D)
    return output.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2, 3)


def shifted_segment_attention(
    query: Tensor, key: Tensor, value: Tensor, segment_len: int, dropout_p: float = 0.0
) -> Tensor:
    """Every query sees its segment causally. In half of the heads, segments are shifted by half a length.

    The N positions are cut into segments of `segment_len`, from the first position on. In the second half of the heads,
    the first segment is half as long, so that the others straddle the cuts. The last segments may be shorter. No
    segment wraps around the end of the sequence.

    Source: S2-Attn of LongLoRA, arXiv 2309.12307, without the leak of its published form.
    """
    half, n_queries = segment_len // 2, query.shape[2]
    if n_queries < key.shape[2]:
        first_segment = (key.shape[2] - n_queries) // segment_len
        key, value = _without_first(max(0, first_segment - 1) * segment_len, key, value)
    if key.shape[2] <= half:
        return causal_attention(query, key, value, dropout_p)
    query, key, value = _aligned(query, key, value)
    n_heads = query.shape[1] // 2

    def segments(heads: slice, positions: slice, length: int) -> Tensor:  # each sees only itself
        parts = query[:, heads, positions], key[:, heads, positions], value[:, heads, positions]
        return segment_pair_attention(*parts, segment_len=length, look_back=0, dropout_p=dropout_p)

    in_place = segments(slice(n_heads), slice(None), segment_len)  # (B, H / 2, N, D)
    first = segments(slice(n_heads, None), slice(half), half)
    shifted = torch.cat((first, segments(slice(n_heads, None), slice(half, None), segment_len)), dim=2)
    return _unaligned(torch.cat((in_place, shifted), dim=1), n_queries)  # (B, H, N, D)


def sliding_window_attention(query: Tensor, key: Tensor, value: Tensor, window: int, dropout_p: float = 0.0) -> Tensor:
    """Position i sees the last `window` positions up to itself: O(N window).

    Source: the sliding window of Longformer, arXiv 2004.05150, made causal.
    """
    n_queries, n_before = query.shape[2], window - 1
    if n_queries < key.shape[2]:
        key, value = _without_first(max(0, key.shape[2] - n_queries - n_before), key, value)
    if key.shape[2] <= window:
        return causal_attention(query, key, value, dropout_p)
    loops = query.device.type == "cpu" and not torch.compiler.is_compiling()  # a compiler would unroll the loop
    if loops and can_merge(query, dropout_p):
        return WindowedAttention.apply(query, key, value, window)  # type: ignore[no-untyped-call]
    padding = -(key.shape[2] - n_before) % window
    query, key, value = _aligned(query, key, value, padding)
    output = _in_blocks(_band_attention, query, key, value, window, n_before, dropout_p)
    return _unaligned(output, n_queries, padding)


def _band_attention(query: Tensor, key: Tensor, value: Tensor, dropout_p: float = 0.0) -> Tensor:
    """Query i of Q sees the N - Q + 1 keys i .. i + (N - Q)."""
    n_queries, n_keys = query.shape[-2], key.shape[-2]
    mask = band_mask(n_queries, n_keys, n_keys - n_queries + 1, query.device)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout_p)


def _in_blocks(
    attend: Attend,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    block_len: int,
    n_before: int,
    dropout_p: float,
) -> Tensor:
    """A local pattern in blocks: queries attend to the positions of their block and the `n_before` before the block.

    The blocks begin after the first `n_before` positions, which have plain causal attention. The keys are copied, so
    that all blocks form one batch. All tensors are (B, H, n_before + S block_len, D).
    """
    batch = query.shape[0]

    def fold(x: Tensor, size: int) -> Tensor:  # (B, H, N, D) -> (B S, H, size, D)
        return x.unfold(2, size, block_len).permute(0, 2, 1, 4, 3).flatten(0, 1)

    def unfold(x: Tensor) -> Tensor:  # (B S, H, block_len, D) -> (B, H, S block_len, D)
        return x.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2, 3)

    blocks = fold(query[:, :, n_before:], block_len), *(fold(x, n_before + block_len) for x in (key, value))
    if n_before == 0:
        return unfold(attend(*blocks, dropout_p=dropout_p))
    first = causal_attention(query[:, :, :n_before], key[:, :, :n_before], value[:, :, :n_before], dropout_p)
    return torch.cat((first, unfold(attend(*blocks, dropout_p=dropout_p))), dim=2)


def _without_first(n: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Drop the first `n` keys and values, which no query sees."""
    return key[:, :, n:], value[:, :, n:]


def _aligned(query: Tensor, key: Tensor, value: Tensor, padding: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Pad to equal lengths with zeros in front of the queries, and with `padding` zeros at the end of all tensors."""
    n_missing = key.shape[2] - query.shape[2]
    if n_missing or padding:
        query = F.pad(query, (0, 0, n_missing, padding))
    if padding:
        key, value = (F.pad(x, (0, 0, 0, padding)) for x in (key, value))
    return query, key, value


def _unaligned(output: Tensor, n_queries: int, padding: int = 0) -> Tensor:
    """The output at the last `n_queries` positions before the padding."""
    stop = output.shape[2] - padding
    return output if n_queries == output.shape[2] else output[:, :, stop - n_queries : stop]


def unmasked_segment_attention(
    query: Tensor, key: Tensor, value: Tensor, segment_len: int, dropout_p: float = 0.0
) -> Tensor:
    """Each segment of `segment_len` positions sees itself without a mask. The last one may be shorter. Q must be N."""
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
