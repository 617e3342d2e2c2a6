"""Attention with a pattern that also sees the first tokens of a text, which trained models need (attention sinks).

The scores of these kept tokens come from separate queries, rotated so that the tokens appear to stand right before the
first position that a query sees. Shapes: B batch, H heads, Q queries, N keys, K kept tokens, D head width.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from llp.decoder.kernels.fused import Triple
from llp.decoder.kernels.merged import MergedAttention, Part, can_merge, segment_parts
from llp.decoder.patterns import AttentionPattern, SegmentAttention


class BlocksPlan(NamedTuple):
    """A pass in blocks of queries with masks, for any pattern."""

    blocks: list[tuple[int, Tensor, Tensor]]
    """For each block, its first key, and masks of the keys, (1 or H, q, n), and of the kept tokens, (1 or H, q, K)."""
    turns: Tensor
    """Number of positions by which the kept tokens are moved for each query, (1 or H, Q)."""

    def attend(self, local: Triple, kept: Triple, scale: float) -> Tensor:
        """Attention (B, H, Q, D) to a text's keys and its kept tokens; zeros for a query that sees nothing."""
        on_cpu, dtype = local[0].device.type == "cpu", local[0].dtype
        parts, outputs, start = [], [], 0
        for first_key, mask, kept_mask in self.blocks:
            queries = 2, start, mask.shape[1]
            part = Part(queries, (2, first_key, mask.shape[2]), mask=_added(mask, dtype))
            kept_part = Part(queries, None, mask=_added(kept_mask, dtype), is_second=True)
            if on_cpu:
                parts += [part, kept_part] if kept_mask.any() else [part]
            else:
                outputs.append(attend_block(part, kept_part, local, kept, scale))
            start += mask.shape[1]
        if on_cpu:
            outputs.append(_merged(parts, scale, *local, *kept))
        sees_any = [mask.any(-1) | kept_mask.any(-1) for _, mask, kept_mask in self.blocks]
        return torch.cat(outputs, dim=2).masked_fill(~torch.cat(sees_any, dim=1).unsqueeze(-1), 0)


class SegmentsPlan(NamedTuple):
    """A pass without masks, for a pattern that cuts the text into segments."""

    pattern: SegmentAttention
    first_segment: int
    """Number of the segment with which the keys begin."""
    n_before: int
    """Number of keys before the first query."""
    turns: Tensor
    """As in `BlocksPlan`."""

    def attend(self, local: Triple, kept: Triple, scale: float) -> Tensor:
        """As in `BlocksPlan`."""
        segment_len, look_back = self.pattern.segment_len, self.pattern.look_back
        batch, n_queries = len(local[0]), local[0].shape[2]
        padding = -local[1].shape[2] % segment_len  # of a shorter last segment; causality hides it

        def fold(x: Tensor, n_before: int) -> Tensor:  # (B, H, N, D) -> (B S, H, M, D)
            padded = F.pad(x, (0, 0, n_before, padding)) if n_before or padding else x
            return padded.unflatten(2, (-1, segment_len)).transpose(1, 2).flatten(0, 1)

        query, turned = fold(local[0], self.n_before), fold(kept[0], self.n_before)
        n_segments = len(query) // batch
        parts = segment_parts(query, query, batch, look_back)
        n_near = min(n_segments, max(0, look_back + 1 - self.first_segment))  # their keys include the first tokens
        for sample in range(batch if n_near < n_segments else 0):
            segments = 0, sample * n_segments + n_near, n_segments - n_near
            parts.append(Part(segments, segments, is_second=True))
        kept_keys = (x.repeat_interleave(n_segments, dim=0) for x in kept[1:])  # (B S, H, K, D)
        inputs = query, fold(local[1], 0), fold(local[2], 0), turned, *kept_keys
        output = _merged(parts, scale, *inputs)
        return output.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2, 3)[:, :, self.n_before :][:, :, :n_queries]


def make_plan(
    pattern: AttentionPattern, n_kept: int, n_before: int, n: int, first: int, query: Tensor
) -> BlocksPlan | SegmentsPlan:
    """Plan a pass for queries at the positions n_before .. n - 1 of a text.

    Args:
        pattern: The pattern. A query also sees the kept tokens that are before the first position that it sees.
        n_kept: K, the number of kept tokens.
        n_before: Position of the first query.
        n: Number of positions in the text.
        first: Position of the first key, apart from the kept ones. A multiple of the pattern's unit.
        query: (B, H, Q, D), for its shape, device and data type.
    """
    n_queries, device = n - n_before, query.device
    if isinstance(pattern, SegmentAttention) and n_queries > pattern.segment_len >= n_kept and can_merge(query, 0.0):
        segments = torch.arange(n_before, n, device=device) // pattern.segment_len
        start = (segments - pattern.look_back) * pattern.segment_len  # the first position that each query sees
        turns = (start - n_kept).clamp(min=0).unsqueeze(0)
        return SegmentsPlan(pattern, first // pattern.segment_len, n_before - first, turns)
    blocks, turns_of_blocks = [], []
    kept, own = torch.arange(n_kept, device=device), torch.arange(n_before, n, device=device)
    for first_key, mask in pattern.mask_blocks(query.shape[1], n_queries, n - first, device):
        block, own = own[: mask.shape[1]], own[mask.shape[1] :]
        start = torch.where(mask.any(-1), mask.to(torch.uint8).argmax(-1) + first_key + first, block)  # (1 or H, q)
        blocks.append((first_key, mask, kept < start.unsqueeze(-1)))
        turns_of_blocks.append((start - n_kept).clamp(min=0))
    return BlocksPlan(blocks, torch.cat(turns_of_blocks, dim=1))


def attend_block(part: Part, kept_part: Part, local: Triple, kept: Triple, scale: float) -> Tensor:
    """Attend in a block on a device without a kernel that returns log-sum-exps under a mask.

    The scores of the kept tokens are passed as the mask of keys that are zero.
    """
    query, key, value = part.take(local)
    turned, kept_key, kept_value = kept_part.take((*local, *kept))
    assert part.mask is not None
    assert kept_part.mask is not None
    bias = turned @ kept_key.transpose(-1, -2) * scale + kept_part.mask  # (B, H, q, K)
    mask = torch.cat((bias, part.mask.expand(*bias.shape[:3], -1)), dim=-1)
    key, value = torch.cat((torch.zeros_like(kept_key), key), dim=2), torch.cat((kept_value, value), dim=2)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)


def _merged(parts: list[Part], scale: float, *tensors: Tensor) -> Tensor:
    output: Tensor = MergedAttention.apply(scale, lambda *_: parts, (), *tensors)  # type: ignore[no-untyped-call]
    return output


def _added(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """Values added to scores, (1, 1 or H, q, n). They are finite, so that a query that sees nothing gives no NaN."""
    return torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min / 2).unsqueeze(0)
