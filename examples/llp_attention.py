"""The attention of LLP, the Long LoRA Perceiver, on plain torch: copy this file, nothing else is needed.

The positions are cut into segments of m. A position attends to the whole segment before its own and, causally, to its
own segment:

    softmax(q k^T / sqrt(D) + mask) v,   key j is visible to query i  <=>  j <= i and i // m - j // m <= 1

so that a layer costs O(N m) instead of O(N^2), and L layers read back L segments. Source: arXiv 2412.06106; the package
long-lora-perceiver has faster paths, caches and training, and a test holds this file equal to it.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def llp_attention(query: Tensor, key: Tensor, value: Tensor, segment_len: int) -> Tensor:
    """Attention of each segment to itself and to the segment before it.

    Args:
        query: (B, H, N, D), of all positions, after rotary embedding.
        key: (B, H, N, D).
        value: (B, H, N, D).
        segment_len: m; N need not be a multiple of it.

    Returns:
        (B, H, N, D).
    """
    n, m = query.shape[2], segment_len
    padding = -n % m  # positions at the end: nothing before them sees them
    q, k, v = (F.pad(x, (0, 0, 0, padding)).unflatten(2, (-1, m)) for x in (query, key, value))  # (B, H, S, m, D)
    # The first segment gets another before it, of zeros, that its mask hides.
    k, v = (torch.cat((F.pad(x[:, :, :-1], (0, 0, 0, 0, 1, 0)), x), dim=3) for x in (k, v))  # (B, H, S, 2 m, D)
    own = torch.ones(m, m, dtype=torch.bool, device=query.device).tril()
    before = torch.ones_like(own).expand(q.shape[2], m, m).clone()
    before[0] = False
    mask = torch.cat((before, own.expand_as(before)), dim=2)  # (S, m, 2 m)
    output = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (B, H, S, m, D)
    return output.flatten(2, 3)[:, :, :n]


def llp_attention_step(query: Tensor, key: Tensor, value: Tensor, segment_len: int) -> Tensor:
    """The same for the last position alone, as in generation: only the last 2 m keys are needed.

    Args:
        query: (B, H, 1, D), of position N - 1.
        key: (B, H, N, D), or a cache of its end from the start of the segment before the query's.
        value: Likewise.
        segment_len: m.
    """
    n = key.shape[2]
    first = max(0, (n - 1) // segment_len - 1) * segment_len
    return F.scaled_dot_product_attention(query, key[:, :, first:], value[:, :, first:])
