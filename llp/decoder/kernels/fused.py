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


class FusedKernel(NamedTuple):
    """A fused attention operator and its gradient, without dropout."""

    forward: Callable[..., tuple[Tensor, Tensor, tuple[Tensor, ...]]]
    """`forward(query, key, value, is_causal, scale, mask)`, for query (B, H, Q, D), key and value (B, H, N, D).

    `mask` is added to the scores. Returns the output (B, H, Q, D), the log-sum-exps (B, H, Q), and the remaining
    arguments of `backward`.
    """
    backward: Callable[..., tuple[Tensor, Tensor, Tensor]]
    """`backward(grad, query, key, value, output, lse, is_causal, scale, mask, *rest)`.

    Returns the gradients of query, key and value.
    """
    takes: Callable[[Tensor], bool]
    """Whether the operator supports this query."""
    head_dim_multiple: int = 1
    """The head width must be a multiple of this."""


def _cpu_forward(
    query: Tensor, key: Tensor, value: Tensor, is_causal: bool, scale: float, mask: Tensor | None
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    arguments = query, key, value, 0.0, is_causal
    output, lse = aten._scaled_dot_product_flash_attention_for_cpu(*arguments, attn_mask=mask, scale=scale)
    return output, lse, ()


def _cpu_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    lse: Tensor,
    is_causal: bool,
    scale: float,
    mask: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    arguments = grad, query, key, value, output, lse, 0.0, is_causal
    return aten._scaled_dot_product_flash_attention_for_cpu_backward(*arguments, attn_mask=mask, scale=scale)


def _flash_forward(
    query: Tensor, key: Tensor, value: Tensor, is_causal: bool, scale: float, mask: None
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    returned = aten._scaled_dot_product_flash_attention(query, key, value, 0.0, is_causal, scale=scale)
    return returned[0], returned[1], tuple(returned[6:8])


def _flash_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    lse: Tensor,
    is_causal: bool,
    scale: float,
    mask: None,
    seed: Tensor,
    offset: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    lengths = None, None, query.shape[2], key.shape[2]  # no cumulative lengths, because sequences aren't packed
    arguments = grad, query, key, value, output, lse, *lengths, 0.0, is_causal, seed, offset
    return aten._scaled_dot_product_flash_attention_backward(*arguments, scale=scale)


def _cudnn_forward(
    query: Tensor, key: Tensor, value: Tensor, is_causal: bool, scale: float, mask: None
) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
    returned = aten._scaled_dot_product_cudnn_attention(query, key, value, None, True, 0.0, is_causal, scale=scale)
    return returned[0], returned[1].view(query.shape[:3]), tuple(returned[6:8])  # its log-sum-exps are (B, H, Q, 1)


def _cudnn_backward(
    grad: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    output: Tensor,
    lse: Tensor,
    is_causal: bool,
    scale: float,
    mask: None,
    seed: Tensor,
    offset: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:
    lengths = None, None, query.shape[2], key.shape[2]
    arguments = grad, query, key, value, output, lse.unsqueeze(-1), seed, offset, None, *lengths, 0.0, is_causal
    return aten._scaled_dot_product_cudnn_attention_backward(*arguments, scale=scale)


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
