"""Sliding-window attention with the CPU's fused kernel, in blocks of queries.

A block sees its own positions and as many before them as the window reaches back. The keys of neighbouring blocks
overlap; they are views, not copies. One small mask, the same for all blocks, hides what is outside of each query's
window. For n queries, a window of w and blocks of b, about n (w + b) scores are computed, and no tensor is n x n.
Measurements: benchmarks/README.md.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

fused_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
fused_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


class Blocks(NamedTuple):
    """Consecutive blocks of queries in one sample. Each sees `n_before` keys before its own positions."""

    sample: int
    start: int
    number: int
    length: int
    n_before: int


class WindowedAttention(Function):
    """Attention of position i of N to the last `window` positions up to itself, without dropout.

    `query` is (B, H, Q, D), at the last Q positions, `key` and `value` are (B, H, N, D) with N - Q < `window`, and the
    output is (B, H, Q, D).
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, window: int) -> Tensor:
        n, first = key.shape[2], key.shape[2] - query.shape[2]
        lse_dtype = torch.promote_types(query.dtype, torch.float32)
        output, lse = torch.empty_like(query), torch.empty(*query.shape[:3], 1, dtype=lse_dtype)
        for blocks in window_blocks(query.shape[0], first, n, window):
            mask, own_query = _mask(query, blocks, window), _own(query, blocks, first)
            seen_key, seen_value = _seen(key, blocks), _seen(value, blocks)
            part, part_lse = fused_forward(own_query, seen_key, seen_value, 0.0, mask is None, attn_mask=mask)
            _own(output, blocks, first).copy_(part)
            _own(lse, blocks, first).copy_(part_lse.unsqueeze(-1))
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.window = window
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, lse = ctx.saved_tensors
        n, first = key.shape[2], key.shape[2] - query.shape[2]
        grad_query, grad_key, grad_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for blocks in window_blocks(query.shape[0], first, n, ctx.window):
            mask, seen = _mask(query, blocks, ctx.window), (_seen(key, blocks), _seen(value, blocks))
            grad, own_query, own_output, own_lse = (_own(x, blocks, first) for x in (grad_output, query, output, lse))
            inputs = grad, own_query, *seen, own_output, own_lse.squeeze(-1)
            part_query, part_key, part_value = fused_backward(*inputs, 0.0, mask is None, attn_mask=mask)
            _own(grad_query, blocks, first).copy_(part_query)
            _add_to_seen(grad_key, blocks, part_key)
            _add_to_seen(grad_value, blocks, part_value)
        return grad_query, grad_key, grad_value, None


def window_blocks(batch: int, first: int, n: int, window: int) -> list[Blocks]:
    """Cut the queries `first` .. `n` - 1 of each sample into a part that sees all keys before it, and equal blocks.

    Up to 1,024 queries are computed at a time, so that outputs and gradients reuse the same small buffers. The number
    of keys before a block is rounded up, so that rows of scores fill the kernel's vectors; the mask hides the surplus.
    """
    n_before, block_len = 16 * math.ceil((window - 1) / 16), block_length(window)
    start = min(n, max(n_before, first))
    whole, rest = divmod(n - start, block_len)
    at_a_time = 1024 // block_len
    cuts = [Blocks(0, first, 1, start - first, first)] if start > first else []
    cuts += [
        Blocks(0, start + done * block_len, min(at_a_time, whole - done), block_len, n_before)
        for done in range(0, whole, at_a_time)
    ]
    cuts += [Blocks(0, n - rest, 1, rest, n_before)] if rest else []
    return [blocks._replace(sample=sample) for sample in range(batch) for blocks in cuts]


def block_length(window: int) -> int:
    """Queries per block: longer ones compute more hidden scores, shorter ones have smaller products."""
    if window <= 128:
        return 32
    return 64 if window <= 512 else 96


def band_mask(n_queries: int, n_keys: int, window: int, device: torch.device) -> Tensor:
    """Which keys each query sees, with the queries at the last positions: (n_queries, n_keys) booleans."""
    last = n_keys - n_queries  # the last key that the first query sees
    return torch.ones(n_queries, n_keys, dtype=torch.bool, device=device).tril(last).triu(last - window + 1)


def _mask(query: Tensor, blocks: Blocks, window: int) -> Tensor | None:
    """Values that the kernel adds to the scores of a block, or None if the block only needs a causal mask."""
    if blocks.n_before == 0 and blocks.length <= window:
        return None
    seen = band_mask(blocks.length, blocks.n_before + blocks.length, window, query.device)
    return torch.zeros_like(seen, dtype=query.dtype).masked_fill_(~seen, -math.inf)


def _own(x: Tensor, blocks: Blocks, first: int) -> Tensor:
    """The blocks' own positions of (B, H, Q, D), whose first one is at `first`, as a view: (S, H, block_len, D)."""
    return _pieces(x, blocks, blocks.start - first, blocks.length)


def _seen(x: Tensor, blocks: Blocks) -> Tensor:
    """The blocks' own positions of (B, H, N, D), and those before, as a view: (S, H, n_before + block_len, D)."""
    return _pieces(x, blocks, blocks.start - blocks.n_before, blocks.n_before + blocks.length)


def _add_to_seen(grad: Tensor, blocks: Blocks, part: Tensor) -> None:
    """Add `part` (S, H, n_before + block_len, D) to `grad` (B, H, N, D), in which the blocks overlap.

    Pieces that are no longer than a block don't overlap, so they are added one after another.
    """
    start, piece_len = blocks.start - blocks.n_before, blocks.length if blocks.number > 1 else part.shape[2]
    for done in range(0, part.shape[2], piece_len):
        piece = part[:, :, done : done + piece_len]
        _pieces(grad, blocks, start + done, piece.shape[2]).add_(piece)


def _pieces(x: Tensor, blocks: Blocks, start: int, size: int) -> Tensor:
    """A piece of (B, H, N, D) for each block, a block's length after the one before: a view (S, H, size, D)."""
    whole = x[blocks.sample].narrow(1, start, (blocks.number - 1) * blocks.length + size)
    return whole.unfold(1, size, blocks.length).permute(1, 0, 3, 2)
