"""Rotary position embedding: queries and keys are rotated by angles proportional to their positions."""

import torch
from torch import Tensor


def rotary_table(n_positions: int, head_dim: int, base: float, like: Tensor, first: int = 0) -> Tensor:
    """The factors exp(i p base^(-2 j / D)) of position p and pair j, complex (N, D / 2), on the device of `like`.

    The N positions start at `first`.

    The angles are computed in float64, because float32 has lost half of its digits by position 10,000; the table is
    complex64, or complex128 if `like` is float64.
    """
    positions = torch.arange(first, first + n_positions, device=like.device, dtype=torch.float64)
    pairs = torch.arange(0, head_dim, 2, device=like.device, dtype=torch.float64)
    angles = torch.outer(positions, base ** (-pairs / head_dim))
    rotations = torch.polar(torch.ones_like(angles), angles)
    return rotations if like.dtype == torch.float64 else rotations.to(torch.complex64)


def rotate(x: Tensor, rotations: Tensor) -> Tensor:
    """Rotary embedding: rotate the interleaved pairs (2 j, 2 j + 1) of `x` (B, N, H, D), as complex numbers.

    `rotations` are (N, D / 2), or (B, N, D / 2) if the sequences are at different positions.
    """
    pairs = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(-1, (-1, 2))  # (B, N, H, D / 2, 2)
    rotated = torch.view_as_complex(pairs) * rotations.unsqueeze(-2)  # (B, N, H, D / 2)
    return torch.view_as_real(rotated).flatten(-2).type_as(x)
