"""Attention to a pattern's keys and to the kept first tokens, as parts that are merged by their log-sum-exps.

The kept tokens have queries of their own, turned back so that the tokens seem to stand right before what the query
sees. Shapes: B batch, H heads, Q queries, N keys, K kept tokens, D head width, R rotary frequencies.
"""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

from llp.decoder.kernels.fused import KERNELS
from llp.decoder.kernels.merged import Range, can_merge, segment_parts
from llp.decoder.patterns import AttentionPattern, SegmentAttention

_cpu_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_cpu_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

Triple = tuple[Tensor, Tensor, Tensor]
"""Query (B, H, Q, D), key and value (B, H, N, D)."""


class Part(NamedTuple):
    """Some queries and the keys that they see."""

    of_kept: bool
    """Whether the keys are those of the kept tokens, with their queries, or the pattern's."""
    queries: Range
    keys: Range
    is_causal: bool = False
    mask: Tensor | None = None
    """What is added to the scores, broadcast to (B, H, Q, N); on the CPU alone."""

    def take(self, local: Triple, kept: Triple) -> Triple:
        query, key, value = kept if self.of_kept else local
        return _take(query, self.queries), _take(key, self.keys), _take(value, self.keys)


class PartsAttention(Function):
    """Attention whose softmax runs over the keys of all parts that a query is in; (B, H, Q, D).

    For outputs o and log-sum-exps z of parts A and B the output over both is o_A + sigmoid(z_B - z_A) (o_B - o_A). In
    the backward pass each part needs only the output and the log-sum-exp over all of them.
    """

    @staticmethod
    def forward(ctx: Any, parts: list[Part], scale: float, *tensors: Tensor) -> Tensor:
        query, kernel = tensors[0], KERNELS[tensors[0].device.type]
        output = torch.zeros_like(query)
        lse = query.new_full(query.shape[:3], -math.inf, dtype=torch.promote_types(query.dtype, torch.float32))
        rest: tuple[Tensor, ...] = ()
        for part in parts:
            inputs = part.take(tensors[:3], tensors[3:])
            if part.mask is None:
                out, z, rest = kernel.forward(*inputs, part.is_causal, scale)
            else:
                out, z = _cpu_forward(*inputs, 0.0, False, attn_mask=part.mask, scale=scale)
            so_far, lse_so_far = _take(output, part.queries), _take(lse, part.queries)
            so_far.lerp_(out, torch.sigmoid(z - lse_so_far).unsqueeze(-1).to(out.dtype))
            lse_so_far.copy_(torch.logaddexp(lse_so_far, z))
        ctx.save_for_backward(output, lse, *tensors, *rest)
        ctx.parts, ctx.scale = parts, scale
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        output, lse, *saved = ctx.saved_tensors
        tensors, rest = saved[:6], saved[6:]
        kernel = KERNELS[output.device.type]
        grads = [torch.zeros_like(tensor) for tensor in tensors]
        for part in ctx.parts:
            inputs = part.take(tensors[:3], tensors[3:])
            grad, out, z = (_take(x, part.queries) for x in (grad_output, output, lse))
            if part.mask is None:
                more = kernel.backward(grad, *inputs, out, z, part.is_causal, ctx.scale, *rest)
            else:
                more = _cpu_backward(grad, *inputs, out, z, 0.0, False, attn_mask=part.mask, scale=ctx.scale)
            for total, added in zip(part.take(grads[:3], grads[3:]), more, strict=True):
                total.add_(added)
        return None, None, *grads


class Plan(NamedTuple):
    """What a pass computes for queries at n_before .. n - 1 and a pattern's keys from `first` on; made once a pass."""

    segment_len: int | None
    """Set if the queries can be cut into segments, without masks."""
    n_padding: tuple[int, int]
    """Then: positions before the first query in its frame, and after the last one."""
    blocks: list[tuple[int, Tensor, Tensor]]
    """Else, of each block of queries: its first key, and the masks (1 or H, q, n) of keys and (1 or H, q, K) of kept."""
    turns: Tensor
    """By how many positions the kept tokens move for each query, (1 or H, Q)."""


def make_plan(
    pattern: AttentionPattern, n_kept: int, n_heads: int, n_before: int, n: int, first: int, query: Tensor
) -> Plan:
    """See `Plan`. Kept tokens that a query's pattern sees itself are not given to it twice."""
    n_queries, device = n - n_before, query.device
    if isinstance(pattern, SegmentAttention) and n_queries > pattern.segment_len >= n_kept and can_merge(query, 0.0):
        segment_len = pattern.segment_len
        start = (torch.arange(n_before, n, device=device) // segment_len - pattern.look_back) * segment_len
        return Plan(segment_len, (n_before - first, -n % segment_len), [], (start - n_kept).clamp(min=0).unsqueeze(0))
    blocks, turns, done = [], [], n_before
    kept = torch.arange(n_kept, device=device)
    for first_key, mask in pattern.mask_blocks(n_heads, n_queries, n - first, device):
        own = torch.arange(done, done + mask.shape[1], device=device)
        start = torch.where(mask.any(-1), mask.to(torch.uint8).argmax(-1) + first_key + first, own)  # (1 or H, q)
        blocks.append((first_key, mask, kept < start.unsqueeze(-1)))
        turns.append((start - n_kept).clamp(min=0))
        done += mask.shape[1]
    return Plan(None, (0, 0), blocks, torch.cat(turns, dim=1))


def attend_in_segments(
    plan: Plan, look_back: int, first_segment: int, local: Triple, kept: Triple, scale: float
) -> Tensor:
    """Segments see themselves, those before them and, where they don't see the first tokens, the kept ones."""
    assert plan.segment_len is not None
    batch, n_queries, segment_len = len(local[0]), local[0].shape[2], plan.segment_len
    before, after = plan.n_padding

    def fold(x: Tensor, before: int) -> Tensor:  # (B, H, N, D) -> (B S, H, M, D)
        padded = F.pad(x, (0, 0, before, after))
        return padded.unflatten(2, (-1, segment_len)).transpose(1, 2).flatten(0, 1)

    query, turned = fold(local[0], before), fold(kept[0], before)
    n_segments = len(query) // batch
    kept_keys = (x.repeat_interleave(n_segments, dim=0) for x in kept[1:])  # (B S, H, K, D)
    n_near = min(n_segments, max(0, look_back + 1 - first_segment))  # that see the first tokens themselves
    parts = [Part(False, *part) for part in segment_parts(query, query, batch, look_back)]
    if n_near < n_segments:
        for sample in range(batch):
            rows = 0, sample * n_segments + n_near, n_segments - n_near
            parts.append(Part(True, rows, rows))
    output = PartsAttention.apply(parts, scale, query, fold(local[1], 0), fold(local[2], 0), turned, *kept_keys)
    return output.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2, 3)[:, :, before : before + n_queries]


def attend_in_blocks(plan: Plan, local: Triple, kept: Triple, scale: float) -> Tensor:
    """The pattern's own definition, in blocks of queries with a mask each."""
    query, key, value = local
    on_cpu = query.device.type == "cpu"
    parts, outputs, start = [], [], 0
    for first_key, mask, kept_mask in plan.blocks:
        size, n_keys = mask.shape[1:]
        local_part = Part(False, (2, start, size), (2, first_key, n_keys), mask=_added(mask, query.dtype))
        kept_part = Part(True, (2, start, size), None, mask=_added(kept_mask, query.dtype))
        parts += [local_part, kept_part] if kept_mask.any() else [local_part]
        if not on_cpu:
            outputs.append(_attend_block(local_part, kept_part, local, kept, scale))
        start += size
    if on_cpu:
        outputs.append(PartsAttention.apply(parts, scale, query, key, value, *kept))
    output = torch.cat(outputs, dim=2) if len(outputs) > 1 else outputs[0]
    sees_any = [(mask.any(-1) | kept_mask.any(-1)) for _, mask, kept_mask in plan.blocks]
    return output.masked_fill(~torch.cat(sees_any, dim=1).unsqueeze(-1), 0)


def _attend_block(local_part: Part, kept_part: Part, local: Triple, kept: Triple, scale: float) -> Tensor:
    """Where no kernel returns log-sum-exps under a mask: scores of the kept tokens go into the mask of zero keys."""
    query, key, value = local_part.take(local, kept)
    turned, kept_key, kept_value = kept_part.take(local, kept)
    bias = turned @ kept_key.transpose(-1, -2) * scale + kept_part.mask  # (B, H, q, K)
    mask = torch.cat((bias, local_part.mask.expand(*bias.shape[:3], -1)), dim=-1)
    key, value = torch.cat((torch.zeros_like(kept_key), key), dim=2), torch.cat((kept_value, value), dim=2)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)


def _added(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to scores, (1, 1 or H, q, n). Finite, so that a part in which a query sees nothing has no NaN."""
    return torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, torch.finfo(dtype).min / 2).unsqueeze(0)


def _take(x: Tensor, where: Range) -> Tensor:
    return x if where is None else x.narrow(*where)
