"""Attention to several parts of keys with queries of their own, merged by their log-sum-exps, also under masks.

More general than `merged`: some parts have other queries, keys and values than the rest, and on the CPU a part may have
a mask. Shapes: B batch, H heads, Q queries, N keys, D head width.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from llp.decoder.kernels.fused import KERNELS
from llp.decoder.kernels.merged import Range

_masked_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_masked_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

Triple = tuple[Tensor, Tensor, Tensor]
"""Query (B, H, Q, D), key and value (B, H, N, D)."""


class SeenPart(NamedTuple):
    """Some queries and the keys that they see."""

    is_second: bool
    """Whether queries, keys and values are those of the second triple."""
    queries: Range
    keys: Range
    is_causal: bool = False
    mask: Tensor | None = None
    """What is added to the scores, broadcast to (B, H, Q, N); on the CPU alone."""

    def take(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> Triple:
        """What it is about of two triples."""
        query, key, value = second if self.is_second else first
        return _part_of(query, self.queries), _part_of(key, self.keys), _part_of(value, self.keys)


class PartsAttention(Function):
    """Attention whose softmax runs over the keys of all parts that a query is in; (B, H, Q, D).

    For outputs o and log-sum-exps z of parts A and B the output over both is o_A + sigmoid(z_B - z_A) (o_B - o_A). In
    the backward pass each part needs only the output and the log-sum-exp over all of them.
    """

    @staticmethod
    def forward(ctx: Any, parts: list[SeenPart], scale: float, *tensors: Tensor) -> Tensor:
        query, kernel = tensors[0], KERNELS[tensors[0].device.type]
        output = torch.zeros_like(query)
        lse = query.new_full(query.shape[:3], -math.inf, dtype=torch.promote_types(query.dtype, torch.float32))
        rest: tuple[Tensor, ...] = ()
        for part in parts:
            inputs = part.take(tensors[:3], tensors[3:])
            if part.mask is None:
                out, z, rest = kernel.forward(*inputs, part.is_causal, scale)
            else:
                out, z = _masked_forward(*inputs, 0.0, False, attn_mask=part.mask, scale=scale)
            so_far, lse_so_far = _part_of(output, part.queries), _part_of(lse, part.queries)
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
            grad, out, z = (_part_of(x, part.queries) for x in (grad_output, output, lse))
            if part.mask is None:
                more = kernel.backward(grad, *inputs, out, z, part.is_causal, ctx.scale, *rest)
            else:
                more = _masked_backward(grad, *inputs, out, z, 0.0, False, attn_mask=part.mask, scale=ctx.scale)
            for total, added in zip(part.take(grads[:3], grads[3:]), more, strict=True):
                total.add_(added)
        return None, None, *grads


def _part_of(x: Tensor, where: Range) -> Tensor:
    return x if where is None else x.narrow(*where)
