"""Attention to several parts of the keys, each computed by the CPU's fused kernel, merged by their log-sum-exps.

A lower-right causal pattern is a causal square (the queries' own positions) and a rectangle without a mask (all earlier
positions). The fused kernel computes both directly: no mask is built, no masked score is computed, and neighbouring
segments need not be copied into pairs. Measurements: benchmarks/README.md.
"""

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

fused_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
fused_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

Range = tuple[int, int, int] | None
"""Dimension, first index and length: the arguments of `narrow`. None: everything."""

Part = tuple[Range, Range, bool]
"""Some of the queries, the keys that they see, and whether the two form a causal square."""


class MergedAttention(Function):
    """Attention whose softmax runs over the keys of all parts that a query belongs to; without dropout.

    `query` is (B, H, Q, D), `key` and `value` are (B, H, N, D), and the output is (B, H, Q, D).
    `make_parts(query, key, *sizes)` returns the parts; the first one covers all queries.

    For parts A and B with outputs o and log-sum-exps z of their scores, the output over both is
    o_A + sigmoid(z_B - z_A) (o_B - o_A), with the log-sum-exp log(exp z_A + exp z_B). In the backward pass each part
    needs only the output and the log-sum-exp z over all parts: its probabilities are exp(scores - z).
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, make_parts: Callable[..., list[Part]], *sizes: int
    ) -> Tensor:
        (_, own, is_causal), *others = make_parts(query, key, *sizes)
        # (B, H, Q, D), (B, H, Q)
        output, lse = fused_forward(query, _take(key, own), _take(value, own), 0.0, is_causal)
        for queries, keys, is_causal in others:
            part, part_lse = fused_forward(_take(query, queries), _take(key, keys), _take(value, keys), 0.0, is_causal)
            so_far, lse_so_far = _take(output, queries), _take(lse, queries)
            so_far.lerp_(part, torch.sigmoid(part_lse - lse_so_far).unsqueeze(-1).to(part.dtype))
            lse_so_far.copy_(torch.logaddexp(lse_so_far, part_lse))
        ctx.save_for_backward(query, key, value, output, lse)
        ctx.make_parts, ctx.sizes = make_parts, sizes
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, lse = ctx.saved_tensors

        def part_grads(queries: Range, keys: Range, is_causal: bool) -> tuple[Tensor, Tensor, Tensor]:
            grad, query_part, output_part, lse_part = (_take(x, queries) for x in (grad_output, query, output, lse))
            key_part, value_part = _take(key, keys), _take(value, keys)
            return fused_backward(grad, query_part, key_part, value_part, output_part, lse_part, 0.0, is_causal)

        (_, own, is_causal), *others = ctx.make_parts(query, key, *ctx.sizes)
        grad_query, grad_own_key, grad_own_value = part_grads(None, own, is_causal)
        grads = grad_query, _put_back(grad_own_key, key, own), _put_back(grad_own_value, value, own)
        for queries, keys, is_causal in others:
            more = part_grads(queries, keys, is_causal)
            for grad, where, added in zip(grads, (queries, keys, keys), more, strict=True):
                _take(grad, where).add_(added)
        return *grads, None, *(None for _ in ctx.sizes)


def tail_parts(query: Tensor, key: Tensor) -> list[Part]:
    """For queries at the last positions, which see their own positions causally, and all earlier ones."""
    n_queries, first = query.shape[2], key.shape[2] - query.shape[2]
    return [(None, (2, first, n_queries), True), (None, (2, 0, first), False)]


def segment_parts(query: Tensor, key: Tensor, batch: int, look_back: int) -> list[Part]:
    """Each segment (B S, H, M, D) sees itself causally, and those before it in its sample, up to `look_back` of them.

    Its pairs with segments before it come in parts of 16, whose outputs and gradients reuse the same small buffers;
    when compiled, in one part per sample and distance, so that one graph serves all lengths.
    """
    n_segments = query.shape[0] // batch
    parts: list[Part] = [(None, None, True)]
    for sample, back in product(range(batch), range(1, look_back + 1)):
        first, n_pairs = sample * n_segments, n_segments - back
        if torch.compiler.is_compiling():
            cuts = [(first, n_pairs)]
        else:
            cuts = [(first + done, min(16, n_pairs - done)) for done in range(0, n_pairs, 16)]
        parts += [((0, start + back, n), (0, start, n), False) for start, n in cuts]
    return parts


def can_merge(query: Tensor, dropout_p: float) -> bool:
    """Whether the fused kernel whose outputs can be merged is available: on the CPU, without dropout."""
    return query.device.type == "cpu" and dropout_p == 0.0


def _take(x: Tensor, where: Range) -> Tensor:
    return x if where is None else x.narrow(*where)


def _put_back(grad: Tensor, x: Tensor, where: Range) -> Tensor:
    """The gradient of `x`, given that of the range taken from it."""
    if where is None:
        return grad
    whole = torch.zeros_like(x)
    _take(whole, where).copy_(grad)
    return whole
