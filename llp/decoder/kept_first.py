"""A pattern with the first tokens of a text kept in sight, as trained models need them (attention sinks).

The kept tokens have queries of their own, turned back so that the tokens seem to stand right before what the query
sees. Shapes: B batch, H heads, Q queries, N keys, K kept tokens, D head width.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from llp.decoder.kernels.fused import Triple
from llp.decoder.kernels.merged import MergedAttention, Part, can_merge, segment_parts
from llp.decoder.patterns import AttentionPattern, SegmentAttention


class BlocksPlan(NamedTuple):
    """What a pass computes by the pattern's own definition, in blocks of queries with a mask each."""

    blocks: list[tuple[int, Tensor, Tensor]]
    """First key, and which keys, (1 or H, q, n), and kept tokens, (1 or H, q, K), the queries of a block see."""
    turns: Tensor
    """By how many positions the kept tokens move for each query, (1 or H, Q)."""

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
    """What a pass computes where a pattern cuts the text into segments: no masks."""

    pattern: SegmentAttention
    first_segment: int
    """The segment that the pattern's keys begin with."""
    n_before: int
    """Keys before the first query."""
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
        n_near = min(n_segments, max(0, look_back + 1 - self.first_segment))  # they see the first tokens themselves
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
    """What to compute for queries at the positions n_before .. n - 1 of a text.

    Args:
        pattern: Who sees whom. Of the kept tokens a query is given those before the first position that it sees.
        n_kept: K.
        n_before: Position of the first query.
        n: Positions in all.
        first: Position of the first key but for the kept ones, a multiple of the pattern's unit.
        query: (B, H, Q, D), for its shape, device and data type.
    """
    n_queries, device = n - n_before, query.device
    if isinstance(pattern, SegmentAttention) and n_queries > pattern.segment_len >= n_kept and can_merge(query, 0.0):
        segments = torch.arange(n_before, n, device=device) // pattern.segment_len
        start = (segments - pattern.look_back) * pattern.segment_len  # of what each query sees
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
    """A block where no kernel returns log-sum-exps under a mask: kept tokens' scores go into the mask of zero keys."""
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
    """What is added to scores, (1, 1 or H, q, n). Finite, so that a part in which a query sees nothing has no NaN."""
    return torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min / 2).unsqueeze(0)
