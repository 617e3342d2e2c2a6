"""Head and cross-entropy, computed together in chunks: the logits of all positions are never in memory at once."""

from collections import defaultdict
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function

CHUNK_LOGITS = defaultdict(lambda: 2**26, cpu=2**23)
"""Number of logits held at a time, by device type: small, but enough for matrix products to run at full speed.

Measured on a CPU (benchmarks/README.md). A GPU needs larger products.
"""


class Losses(NamedTuple):
    """Cross-entropy in nats, in float32 or better."""

    mean: Tensor
    """Mean over all targets, (). Only the mean is differentiable."""
    each: Tensor
    """Loss of each target, (B, S)."""


def linear_cross_entropy(x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> Losses:
    """The loss of `x` (B, S, dim) under the linear head `weight` (V, dim), `bias` (V,), for `targets` (B, S) int64.

    The mean is `cross_entropy(linear(x, weight, bias), targets)`. Gradients are computed together with the loss, so
    that no logit is computed twice, and only for tensors that are trained.
    """
    # Inside the function gradients are disabled, and `needs_input_grad` doesn't say whether they are enabled outside.
    trains = [torch.is_grad_enabled() and p is not None and p.requires_grad for p in (x, weight, bias)]
    mean, each = _LinearCrossEntropy.apply(x.flatten(0, 1), weight, bias, targets.flatten(), trains)  # type: ignore[no-untyped-call]
    return Losses(mean, each.view_as(targets))


class _LinearCrossEntropy(Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor, trains: list[bool]
    ) -> tuple[Tensor, Tensor]:
        """`x` (R, dim), `targets` (R,) -> mean loss (), losses (R,)."""
        device = x.device.type
        compute = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        exact = torch.promote_types(compute, torch.float32)
        losses = torch.empty(len(x), dtype=exact, device=x.device)
        trained = [p if is_trained else None for p, is_trained in zip((x, weight, bias), trains, strict=True)]
        grads = [None if p is None else torch.zeros_like(p, dtype=exact) for p in trained]
        n_rows = max(1, CHUNK_LOGITS[device] // len(weight))
        with torch.autocast(device, enabled=False):
            weight_, bias_ = weight.to(compute), None if bias is None else bias.to(compute)
            for start in range(0, len(x), n_rows):
                rows = slice(start, start + n_rows)
                x_, targets_ = x[rows].to(compute), targets[rows].unsqueeze(1)  # (C, dim), (C, 1)
                log_p = F.log_softmax(F.linear(x_, weight_, bias_), dim=1, dtype=exact)  # (C, V)
                losses[rows] = -log_p.gather(1, targets_).squeeze(1)
                if any(trains):
                    # d loss / d logits = softmax - one-hot
                    grad = log_p.exp_().scatter_add_(1, targets_, torch.full_like(targets_, -1, dtype=exact))
                    _add_gradients(grads, rows, grad.to(compute), x_, weight_)
        ctx.grads, ctx.n_rows = grads, len(x)
        ctx.mark_non_differentiable(losses)
        ctx.dtypes = [None if p is None else p.dtype for p in trained]
        return losses.mean(), losses

    @staticmethod
    def backward(ctx: Any, grad_mean: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        grads, ctx.grads = ctx.grads, None  # scaled in place, because a loss is differentiated only once
        share = grad_mean / ctx.n_rows
        of_inputs = zip(grads, ctx.dtypes, strict=True)
        return *(None if grad is None else grad.mul_(share).to(dtype) for grad, dtype in of_inputs), None, None


def _add_gradients(grads: list[Tensor | None], rows: slice, grad: Tensor, x: Tensor, weight: Tensor) -> None:
    """Add a chunk's gradients, from that of its logits `grad` (C, V), to those of input, weight and bias."""
    grad_x, grad_weight, grad_bias = grads
    if grad_x is not None:
        grad_x[rows] = grad @ weight  # (C, dim)
    if grad_weight is not None and grad.dtype == grad_weight.dtype:
        grad_weight.addmm_(grad.T, x)  # (V, dim)
    elif grad_weight is not None:
        grad_weight += grad.T @ x
    if grad_bias is not None:
        grad_bias += grad.sum(0, dtype=grad_bias.dtype)
