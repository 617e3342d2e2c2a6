"""Linear maps of a few rows, as in generation, where most of the time is spent on reading the weights.

torch's BLAS library multiplies up to three short rows faster as columns on the right of the weights, a single row as
two equal columns. With more rows, it is faster to split a large matrix. Measurements: benchmarks/README.md.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_ROWS = 16
_MOST_COLUMNS, _LONGEST_COLUMN = 3, 1024  # beyond these limits, columns aren't faster than rows
_PIECE_LEN = 1024


def is_small_batch(x: Tensor) -> bool:
    """Whether `small_batch_linear` applies to `x`: a single position of few sequences, on a CPU, without gradients."""
    if torch.is_grad_enabled() or x.device.type != "cpu" or x.ndim != 3:
        return False
    is_plain = x.dtype in (torch.float32, torch.float64) and not torch.is_autocast_enabled("cpu")
    return is_plain and x.shape[1] == 1 and x.shape[0] <= MOST_ROWS


def small_batch_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Equal to `torch.nn.functional.linear`: (B, 1, I) -> (B, 1, O)."""
    n = x.shape[0]
    if n <= _MOST_COLUMNS and x.shape[2] <= _LONGEST_COLUMN:
        rows = x[:, 0] if n > 1 else x[0].expand(2, -1).contiguous()  # two columns are faster than one
        product = (weight @ rows.T).T[:n].unsqueeze(1).contiguous()
    else:
        product = torch.cat([F.linear(x, piece) for piece in weight.split(_PIECE_LEN)], dim=2)
    return product if bias is None else product.add_(bias)
