"""Attention to several parts of the keys, each by the CPU's fused kernel, merged by their log-sum-exps.

A lower-right causal pattern is a causal square (the queries' own positions) and a rectangle without a mask (all that
precedes). The fused kernel takes both as they are, so that no mask is made and no masked score is computed, and
neighbouring segments need not be copied into pairs. Figures: benchmarks/README.md.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

Index = tuple[Any, ...]


class Part(NamedTuple):
    """Some of the queries, the keys that they see, and whether they do so as a causal square."""

    queries: Index
    keys: Index
    is_causal: bool


class MergedAttention(Function):
    """`MergedAttention.apply(query, key, value, parts)`: each query's softmax runs over the keys of all its parts.

    `query` is (B, H, Q, D), `key` and `value` are (B, H, N, D); the first part covers all queries. Without dropout.

    For parts A and B with outputs o and log-sum-exps z of their scores, the output over both is
    o_A + sigmoid(z_B - z_A) (o_B - o_A), with the log-sum-exp log(exp z_A + exp z_B). Backward each part needs no more
    than the output and the log-sum-exp of all: its probabilities are exp(scores - z).
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, parts: list[Part]) -> Tensor:
        output, lse = _forward(query, key[parts[0].keys], value[parts[0].keys], 0.0, parts[0].is_causal)
        for queries, keys, is_causal in parts[1:]:
            part, part_lse = _forward(query[queries], key[keys], value[keys], 0.0, is_causal)
            share = torch.sigmoid(part_lse - lse[queries]).unsqueeze(-1)  # (B, H, Q, 1)
            output[queries].lerp_(part, share.to(part.dtype))
            lse[queries] = torch.logaddexp(lse[queries], part_lse)
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.parts = parts
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # type: ignore[override]
        query, key, value, output, lse = ctx.saved_tensors
        grads = tuple(torch.zeros_like(x) for x in (query, key, value))
        for queries, keys, is_causal in ctx.parts:
            inputs = query[queries], key[keys], value[keys], output[queries], lse[queries]
            part_grads = _backward(grad_output[queries], *inputs, 0.0, is_causal)
            for grad, index, part_grad in zip(grads, (queries, keys, keys), part_grads, strict=True):
                grad[index] += part_grad
        return *grads, None


def can_merge(query: Tensor, dropout_p: float) -> bool:
    """Whether there is a fused kernel that takes parts: on the CPU, without dropout."""
    return query.device.type == "cpu" and dropout_p == 0.0
