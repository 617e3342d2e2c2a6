"""Attention to several parts of the keys, each computed by a fused kernel, merged by their log-sum-exps.

A lower-right causal pattern consists of a causal square (the queries' own positions) and a rectangle without a mask
(all earlier positions). The fused kernel computes both directly: no mask is built, no masked score is computed, and
neighbouring segments need not be copied into pairs. Measurements: benchmarks/README.md.

Shapes: B batch, H heads, Q queries, N keys, D head width.
"""

import math
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import Function

from llp.decoder.kernels.fused import KERNELS, Triple, with_head_dim_multiple

Range = tuple[int, int, int] | None
"""Dimension, first index and length: the arguments of `narrow`. None for everything."""


class Part(NamedTuple):
    """A range of queries, and a range of keys that they see."""

    queries: Range
    keys: Range
    is_causal: bool = False
    """Whether queries and keys form a causal square."""
    mask: Tensor | None = None
    """Values added to the scores, broadcast to (B, H, Q, N). Only supported on the CPU."""
    is_second: bool = False
    """Whether queries, keys and values are taken from the second triple."""

    def take(self, tensors: Sequence[Tensor]) -> Triple:
        """The queries, keys and values of this part, from one or two triples."""
        query, key, value = tensors[3:] if self.is_second else tensors[:3]
        return _take(query, self.queries), _take(key, self.keys), _take(value, self.keys)


def merged_attention(
    query: Tensor, key: Tensor, value: Tensor, make_parts: Callable[..., list[Part]], *sizes: int
) -> Tensor:
    """Attention whose softmax runs over the keys of all parts that contain the query, without dropout.

    `query` is (B, H, Q, D), `key` and `value` are (B, H, N, D), and the output is (B, H, Q, D).
    `make_parts(query, key, *sizes)` returns the parts.
    """
    multiple, head_dim = KERNELS[query.device.type].head_dim_multiple, query.shape[-1]
    scale = 1 / math.sqrt(head_dim)
    if head_dim % multiple == 0:
        return MergedAttention.apply(scale, make_parts, sizes, query, key, value)  # type: ignore[no-untyped-call]
    query, key, value = (with_head_dim_multiple(x, multiple) for x in (query, key, value))
    output: Tensor = MergedAttention.apply(scale, make_parts, sizes, query, key, value)  # type: ignore[no-untyped-call]
    return output[..., :head_dim]


class MergedAttention(Function):
    """Attention in parts of one triple of queries, keys and values, or of two triples.

    The queries of a second triple contribute to the same outputs as those of the first.

    For parts A and B with outputs o and log-sum-exps z of their scores, the output over both is
    o_A + sigmoid(z_B - z_A) (o_B - o_A), with the log-sum-exp log(exp z_A + exp z_B). In the backward pass each part
    needs only the output and the log-sum-exp z over all parts: its probabilities are exp(scores - z).

    Scores are multiplied by `scale`. `make_parts(query, key, *sizes)` returns the parts. A part that contains all
    queries must be the first one.
    """

    @staticmethod
    def forward(
        ctx: Any, scale: float, make_parts: Callable[..., list[Part]], sizes: tuple[int, ...], *tensors: Tensor
    ) -> Tensor:
        query, kernel = tensors[0], KERNELS[tensors[0].device.type]
        parts = make_parts(*tensors[:2], *sizes)
        rest: tuple[Tensor, ...] = ()  # a random state; any will do, because without dropout no operator reads it
        if parts[0].queries is None:
            output, lse, rest = kernel.forward(parts[0].take(tensors), parts[0].is_causal, scale, parts[0].mask)
        else:
            output = torch.zeros_like(query)
            lse = query.new_full(query.shape[:3], -math.inf, dtype=torch.promote_types(query.dtype, torch.float32))
        for part in parts[1:] if parts[0].queries is None else parts:
            more, more_lse, rest = kernel.forward(part.take(tensors), part.is_causal, scale, part.mask)
            so_far, lse_so_far = _take(output, part.queries), _take(lse, part.queries)  # (B, H, Q, D), (B, H, Q)
            so_far.lerp_(more, torch.sigmoid(more_lse - lse_so_far).unsqueeze(-1).to(more.dtype))
            lse_so_far.copy_(torch.logaddexp(lse_so_far, more_lse))
        ctx.save_for_backward(output, lse, *tensors, *rest)
        ctx.n_tensors, ctx.scale, ctx.make_parts, ctx.sizes = len(tensors), scale, make_parts, sizes
        return output

    @staticmethod
    def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        output, lse, *saved = ctx.saved_tensors
        tensors, rest = saved[: ctx.n_tensors], tuple(saved[ctx.n_tensors :])
        kernel = KERNELS[output.device.type]
        grads: list[Tensor | None] = [None] * len(tensors)
        for part in ctx.make_parts(*tensors[:2], *ctx.sizes):
            grad, out, z = (_take(x, part.queries) for x in (grad_output, output, lse))
            inputs, attended = part.take(tensors), (out, z)
            of_part = kernel.backward(grad, inputs, attended, rest, part.is_causal, ctx.scale, part.mask)
            for number, (added, where) in enumerate(zip(of_part, (part.queries, part.keys, part.keys), strict=True)):
                place = number + 3 * part.is_second
                total = grads[place]
                if total is None and where is None:
                    grads[place] = added  # adding it to zeros would take a tenth of the time
                    continue
                if total is None:
                    total = grads[place] = torch.zeros_like(tensors[place])
                _take(total, where).add_(added)
        return None, None, None, *grads


def tail_parts(query: Tensor, key: Tensor) -> list[Part]:
    """The parts of queries at the last positions, which see their own positions causally, and all earlier ones."""
    n_queries, first = query.shape[2], key.shape[2] - query.shape[2]
    return [Part(None, (2, first, n_queries), is_causal=True), Part(None, (2, 0, first))]


def segment_parts(query: Tensor, key: Tensor, batch: int, look_back: int) -> list[Part]:
    """The parts of segments (B S, H, M, D), each of which sees itself causally, and up to `look_back` before it.

    On the CPU, a part has 16 pairs of segments, so that outputs and gradients reuse the same small buffers. On other
    devices there is one part per sample and distance, to launch few kernels; when compiled, too, so that one graph
    serves all lengths.
    """
    n_segments = query.shape[0] // batch
    parts = [Part(None, None, is_causal=True)]
    for sample, back in product(range(batch), range(1, look_back + 1)):
        first, n_pairs = sample * n_segments, n_segments - back
        if query.device.type != "cpu" or torch.compiler.is_compiling():
            cuts = [(first, n_pairs)]
        else:
            cuts = [(first + done, min(16, n_pairs - done)) for done in range(0, n_pairs, 16)]
        parts += [Part((0, start + back, n), (0, start, n)) for start, n in cuts]
    return parts


def can_merge(query: Tensor, dropout_p: float) -> bool:
    """Whether the device has a kernel for this query whose outputs can be merged. There is none with dropout."""
    kernel = KERNELS.get(query.device.type)
    return kernel is not None and dropout_p == 0.0 and kernel.takes(query)


def _take(x: Tensor, where: Range) -> Tensor:
    return x if where is None else x.narrow(*where)
