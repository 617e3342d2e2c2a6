"""Rotary position embedding: queries and keys are rotated by angles proportional to their positions."""

from dataclasses import dataclass

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


@dataclass(frozen=True, eq=False)
class Rotation:
    """The rotary embedding of a pretrained model: pairs of features are rotated by position * inv_freq.

    Source: arXiv 2104.09864.
    """

    inv_freq: Tensor
    """Angle of each pair per position, (R,). Only the first 2 R features are rotated."""
    interleaved: bool
    """Whether a pair is two neighbouring features, rather than the features r and r + R."""

    def cos_sin(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines for positions (..., N): (..., N, R), computed in float64."""
        angles = positions.unsqueeze(-1).double() * self.inv_freq.to(positions.device).double()
        return angles.cos(), angles.sin()

    def turn(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate features (..., N, D) by the angles of `cos` and `sin`, (..., N, R)."""
        n_turned = 2 * cos.shape[-1]
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
        if self.interleaved:
            a, b = x[..., 0:n_turned:2], x[..., 1:n_turned:2]  # (..., N, R)
            turned = torch.stack((a * cos - b * sin, b * cos + a * sin), dim=-1).flatten(-2)
        else:
            a, b = x[..., :n_turned].chunk(2, dim=-1)
            turned = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
        return torch.cat((turned, x[..., n_turned:]), dim=-1) if n_turned < x.shape[-1] else turned
