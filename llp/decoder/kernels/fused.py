"""torch's fused attention operators that return the log-sum-exps of the scores, so that outputs can be merged.

`scaled_dot_product_attention` calls the same operators, but doesn't return the log-sum-exps. With fewer queries than
keys, causal masks are upper-left on the CPU and in cuDNN, and lower-right in CUDA's flash operator.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

aten = torch.ops.aten

Triple = tuple[Tensor, Tensor, Tensor]
"""Query (B, H, Q, D), key and value (B, H, N, D)."""
Attended = tuple[Tensor, Tensor]
"""Output (B, H, Q, D) and log-sum-exps (B, H, Q)."""
Rest = tuple[Tensor, ...]
"""What `backward` needs besides: a random state, or nothing."""


class FusedKernel(NamedTuple):
    """A fused attention operator and its gradient, without dropout."""

    forward: Callable[..., tuple[Tensor, Tensor, Rest]]
    """`forward(inputs, causal, scale, mask)`, where `mask` is added to the scores.

    Returns the output, the log-sum-exps, and the rest.
    """
    backward: Callable[..., Triple]
    """`backward(grad, inputs, attended, rest, causal, scale, mask)`.

    Returns the gradients of query, key and value.
    """
    takes: Callable[[Tensor], bool]
    """Whether the operator supports this query."""
    head_dim_multiple: int = 1
    """The head width must be a multiple of this."""


def _cpu_forward(inputs: Triple, causal: bool, scale: float, mask: Tensor | None) -> tuple[Tensor, Tensor, Rest]:
    output, lse = aten._scaled_dot_product_flash_attention_for_cpu(*inputs, 0.0, causal, attn_mask=mask, scale=scale)
    return output, lse, ()


def _cpu_backward(
    grad: Tensor, inputs: Triple, attended: Attended, rest: Rest, causal: bool, scale: float, mask: Tensor | None
) -> Triple:
    arguments = grad, *inputs, *attended, 0.0, causal
    return aten._scaled_dot_product_flash_attention_for_cpu_backward(*arguments, attn_mask=mask, scale=scale)


def _flash_forward(inputs: Triple, causal: bool, scale: float, mask: None) -> tuple[Tensor, Tensor, Rest]:
    returned = aten._scaled_dot_product_flash_attention(*inputs, 0.0, causal, scale=scale)
    return returned[0], returned[1], tuple(returned[6:8])


def _flash_backward(
    grad: Tensor, inputs: Triple, attended: Attended, rest: Rest, causal: bool, scale: float, mask: None
) -> Triple:
    arguments = grad, *inputs, *attended, *_lengths(inputs), 0.0, causal, *rest
    return aten._scaled_dot_product_flash_attention_backward(*arguments, scale=scale)


def _cudnn_forward(inputs: Triple, causal: bool, scale: float, mask: None) -> tuple[Tensor, Tensor, Rest]:
    returned = aten._scaled_dot_product_cudnn_attention(*inputs, None, True, 0.0, causal, scale=scale)
    lse = returned[1].view(inputs[0].shape[:3])  # from (B, H, Q, 1)
    return returned[0], lse, tuple(returned[6:8])


def _cudnn_backward(
    grad: Tensor, inputs: Triple, attended: Attended, rest: Rest, causal: bool, scale: float, mask: None
) -> Triple:
    output, lse = attended
    arguments = grad, *inputs, output, lse.unsqueeze(-1), *rest, None, *_lengths(inputs), 0.0, causal
    return aten._scaled_dot_product_cudnn_attention_backward(*arguments, scale=scale)


def _lengths(inputs: Triple) -> tuple[None, None, int, int]:
    """No cumulative lengths, because sequences aren't packed, and the numbers of queries and keys."""
    return None, None, inputs[0].shape[2], inputs[1].shape[2]


def takes_flash(query: Tensor) -> bool:
    """Whether CUDA's flash operator supports this query."""
    return (
        query.device.type == "cuda"
        and query.dtype in (torch.float16, torch.bfloat16)
        and query.shape[-1] <= 256
        and _flash_is_available()
    )


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # a compiler can't trace these calls
def _flash_is_available() -> bool:
    """Whether torch was built with the flash operator, the NVIDIA device supports it, and it is not disabled."""
    return (
        torch.version.hip is None
        and torch.backends.cuda.is_flash_attention_available()
        and torch.backends.cuda.flash_sdp_enabled()
        and torch.cuda.get_device_capability() >= (8, 0)
    )


def _takes_cudnn(query: Tensor) -> bool:
    """Whether to try cuDNN with this query. It raises an error for anything else that it doesn't support."""
    return query.device.type == "cuda" and query.dtype in (torch.float16, torch.bfloat16)


CPU = FusedKernel(_cpu_forward, _cpu_backward, takes=lambda query: True)
FLASH = FusedKernel(_flash_forward, _flash_backward, takes_flash, head_dim_multiple=8)
CUDNN = FusedKernel(_cudnn_forward, _cudnn_backward, _takes_cudnn, head_dim_multiple=8)
"""Not used by default. `benchmarks/gpu.py` measures whether it is faster."""

KERNELS = {"cpu": CPU, "cuda": FLASH}
"""The kernel that is used, by device type."""


def lower_right_flash(query: Tensor, key: Tensor, value: Tensor, dropout_p: float) -> Tensor:
    """Lower-right causal attention by CUDA's flash operator, like `causal_lower_right`, but traceable."""
    head_dim = query.shape[-1]
    query, key, value = (with_head_dim_multiple(x, FLASH.head_dim_multiple) for x in (query, key, value))
    scale = head_dim**-0.5
    output = aten._scaled_dot_product_flash_attention(query, key, value, dropout_p, is_causal=True, scale=scale)[0]
    return output[..., :head_dim]


def with_head_dim_multiple(x: Tensor, multiple: int) -> Tensor:
    """Pad the features of (B, H, N, D) with zeros to the next multiple, which changes neither scores nor outputs."""
    padding = -x.shape[-1] % multiple
    return F.pad(x, (0, padding)) if padding else x
