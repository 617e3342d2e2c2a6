"""Attention to several parts of the keys, each computed by a fused kernel, merged by their log-sum-exps.

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

from llp.decoder.kernels.fused import KERNELS, with_head_dim_multiple

Range = tuple[int, int, int] | None
"""Dimension, first index and length, which are the arguments of `narrow`; None for everything."""

Part = tuple[Range, Range, bool]
"""Some of the queries, the keys that they see, and whether the two form a causal square."""


def merged_attention(
    query: Tensor, key: Tensor, value: Tensor, make_parts: Callable[..., list[Part]], *sizes: int
) -> Tensor:
    """Attention whose softmax runs over the keys of all parts that a query belongs to; without dropout.

    `query` is (B, H, Q, D), `key` and `value` are (B, H, N, D), and the output is (B, H, Q, D).
    `make_parts(query, key, *sizes)` returns the parts; the first one covers all queries.
    """
    multiple, head_dim = KERNELS[query.device.type].head_dim_multiple, query.shape[-1]
    if head_dim % multiple == 0:
        return MergedAttention.apply(query, key, value, None, make_parts, *sizes)  # type: ignore[no-untyped-call]
    query, key, value = (with_head_dim_multiple(x, multiple) for x in (query, key, value))
    return MergedAttention.apply(query, key, value, head_dim**-0.5, make_parts, *sizes)[..., :head_dim]  # type: ignore[no-untyped-call]


class MergedAttention(Function):
    """`merged_attention` by the kernel of the device, with scores scaled by `scale` (1 / sqrt(D) if it is None).

    For parts A and B with outputs o and log-sum-exps z of their scores, the output over both is
    o_A + sigmoid(z_B - z_A) (o_B - o_A), with the log-sum-exp log(exp z_A + exp z_B). In the backward pass each part
    needs only the output and the log-sum-exp z over all parts: its probabilities are exp(scores - z).
    """

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        scale: float | None,
        make_parts: Callable[..., list[Part]],
        *sizes: int,
    ) -> Tensor:
        kernel = KERNELS[query.device.type]
        (_, own, is_causal), *others = make_parts(query, key, *sizes)
        # (B, H, Q, D), (B, H, Q)
        output, lse, rest = kernel.forward(query, _take(key, own), _take(value, own), is_causal, scale)
        for queries, keys, is_causal in others:
            inputs = _take(query, queries), _take(key, keys), _take(value, keys)
            part, part_lse, _ = kernel.forward(*inputs, is_causal, scale)
            so_far, lse_so_far = _take(output, queries), _take(lse, queries)
            so_far.lerp_(part, torch.sigmoid(part_lse - lse_so_far).unsqueeze(-1).to(part.dtype))
            lse_so_far.copy_(torch.logaddexp(lse_so_far, part_lse))
        # The rest is a random state, which serves all parts: without dropout no operator reads it.
        ctx.save_for_backward(query, key, value, output, lse, *rest)
        ctx.scale, ctx.make_parts, ctx.sizes = scale, make_parts, sizes
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, lse, *rest = ctx.saved_tensors
        kernel = KERNELS[query.device.type]

        def part_grads(queries: Range, keys: Range, is_causal: bool) -> tuple[Tensor, Tensor, Tensor]:
            grad, query_part, output_part, lse_part = (_take(x, queries) for x in (grad_output, query, output, lse))
            inputs = query_part, _take(key, keys), _take(value, keys)
            return kernel.backward(grad, *inputs, output_part, lse_part, is_causal, ctx.scale, *rest)

        (_, own, is_causal), *others = ctx.make_parts(query, key, *ctx.sizes)
        grad_query, grad_own_key, grad_own_value = part_grads(None, own, is_causal)
        grads = grad_query, _put_back(grad_own_key, key, own), _put_back(grad_own_value, value, own)
        for queries, keys, is_causal in others:
            more = part_grads(queries, keys, is_causal)
            for grad, where, added in zip(grads, (queries, keys, keys), more, strict=True):
                _take(grad, where).add_(added)
        return *grads, None, None, *(None for _ in ctx.sizes)


def tail_parts(query: Tensor, key: Tensor) -> list[Part]:
    """For queries at the last positions, which see their own positions causally, and all earlier ones."""
    n_queries, first = query.shape[2], key.shape[2] - query.shape[2]
    return [(None, (2, first, n_queries), True), (None, (2, 0, first), False)]


def segment_parts(query: Tensor, key: Tensor, batch: int, look_back: int) -> list[Part]:
    """Each segment (B S, H, M, D) sees itself causally, and those before it in its sample, up to `look_back` of them.

    Its pairs with segments before it come, on the CPU, in parts of 16, whose outputs and gradients reuse the same small
    buffers; elsewhere in one part per sample and distance, to launch few kernels, and when compiled, too, so that one
    graph serves all lengths.
    """
    n_segments = query.shape[0] // batch
    parts: list[Part] = [(None, None, True)]
    for sample, back in product(range(batch), range(1, look_back + 1)):
        first, n_pairs = sample * n_segments, n_segments - back
        if query.device.type != "cpu" or torch.compiler.is_compiling():
            cuts = [(first, n_pairs)]
        else:
            cuts = [(first + done, min(16, n_pairs - done)) for done in range(0, n_pairs, 16)]
        parts += [((0, start + back, n), (0, start, n), False) for start, n in cuts]
    return parts


def can_merge(query: Tensor, dropout_p: float) -> bool:
    """Whether the device has a kernel for this query whose outputs can be merged: only without dropout."""
    kernel = KERNELS.get(query.device.type)
    return kernel is not None and dropout_p == 0.0 and kernel.takes(query)


def _take(x: Tensor, where: Range) -> Tensor:
    return x if where is None else x.narrow(*where)


def _put_back(grad: Tensor, x: Tensor, where: Range) -> Tensor:
    """The gradient of `x`, given that of the range taken from it."""
    if where is None:
        return grad
    whole = torch.zeros_like(x)
    _take(whole, where).copy_(grad)
    return whole
