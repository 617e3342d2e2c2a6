"""Patterns against literal masks; the rotary embedding against complex numbers."""

import math

import pytest
import torch

from llp.attention import causal_attention, rotary_table, rotate, segment_pair_attention

CAUSAL_TAIL = [  # 3 queries over 5 keys
    [1, 1, 1, 0, 0],
    [1, 1, 1, 1, 0],
    [1, 1, 1, 1, 1],
]
SEGMENT_PAIRS = [  # segments of 2 over 7 positions: the last one is shorter
    [1, 0, 0, 0, 0, 0, 0],
    [1, 1, 0, 0, 0, 0, 0],
    [1, 1, 1, 0, 0, 0, 0],
    [1, 1, 1, 1, 0, 0, 0],
    [0, 0, 1, 1, 1, 0, 0],
    [0, 0, 1, 1, 1, 1, 0],
    [0, 0, 0, 0, 1, 1, 1],
]


def masked_attention(query, key, value, mask):
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    scores = scores.masked_fill(~torch.tensor(mask, dtype=torch.bool), -math.inf)
    return scores.softmax(-1) @ value


def draw(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def test_causal_attention_of_fewer_queries_is_lower_right():
    query, key, value = draw(2, 3, 3, 4), draw(2, 3, 5, 4), draw(2, 3, 5, 4)
    torch.testing.assert_close(
        causal_attention(query, key, value), masked_attention(query, key, value, CAUSAL_TAIL), rtol=1e-12, atol=1e-12
    )


def test_segment_pair_attention_is_its_mask():
    query, key, value = draw(2, 3, 7, 4), draw(2, 3, 7, 4) + 1, draw(2, 3, 7, 4) - 1
    torch.testing.assert_close(
        segment_pair_attention(query, key, value, segment_len=2),
        masked_attention(query, key, value, SEGMENT_PAIRS),
        rtol=1e-12,
        atol=1e-12,
    )


@pytest.mark.parametrize(("n", "segment_len"), [(1, 1), (1, 4), (4, 4), (5, 4), (8, 4), (9, 4), (11, 1), (13, 5)])
def test_segment_pair_attention_of_any_length(n, segment_len):
    mask = [[j <= i and j // segment_len >= i // segment_len - 1 for j in range(n)] for i in range(n)]
    query, key, value = draw(2, 2, n, 4), draw(2, 2, n, 4) + 1, draw(2, 2, n, 4) - 1
    torch.testing.assert_close(
        segment_pair_attention(query, key, value, segment_len),
        masked_attention(query, key, value, mask),
        rtol=1e-12,
        atol=1e-12,
    )


def test_segment_pair_attention_never_holds_all_pairs():
    """The largest tensor that autograd keeps is linear in the length."""
    sizes = []
    for n in (256, 512):
        saved = []

        def keep(tensor, saved=saved):
            saved.append(tensor.numel())
            return tensor

        query, key, value = (draw(1, 1, n, 2).requires_grad_() for _ in range(3))
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            segment_pair_attention(query, key, value, segment_len=8)
        sizes.append(max(saved))
    assert sizes[1] <= 2.1 * sizes[0]
    assert sizes[1] < 512 * 512 / 8


def test_rotate_is_a_complex_product():
    x = draw(2, 3, 11, 8)
    cos, sin = rotary_table(11, 8, base=500.0, like=x)
    angles = torch.outer(torch.arange(11.0).double(), 500.0 ** -(torch.arange(0, 8, 2).double() / 8))
    turned = torch.view_as_complex(x.unflatten(-1, (4, 2))) * torch.exp(1j * angles)
    torch.testing.assert_close(rotate(x, cos, sin), torch.view_as_real(turned).flatten(-2), rtol=1e-12, atol=1e-12)


def test_rotary_angles_stay_exact_at_far_positions():
    position = 2**20
    cos, sin = rotary_table(position + 1, 4, base=10000.0, like=torch.zeros(1, dtype=torch.bfloat16))
    assert cos.dtype == torch.float32
    assert cos[position, 1].item() == pytest.approx(math.cos(position * 10000**-0.5), abs=1e-6)
    assert sin[position, 0].item() == pytest.approx(math.sin(position), abs=1e-6)
