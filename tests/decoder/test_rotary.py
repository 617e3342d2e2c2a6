"""The rotary embedding against sines and cosines."""

import math

import pytest
import torch

from llp.decoder.rotary import Rotation, rotary_table, rotate


def draw(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def test_rotate_turns_pairs():
    x = draw(2, 11, 3, 8)
    turned = rotate(x, rotary_table(11, 8, base=500.0, like=x))
    for position in range(11):
        for j in range(4):
            a, b = x[:, position, :, 2 * j], x[:, position, :, 2 * j + 1]
            angle = position * 500.0 ** (-2 * j / 8)
            cos, sin = math.cos(angle), math.sin(angle)
            expected = torch.stack((a * cos - b * sin, a * sin + b * cos), dim=-1)
            torch.testing.assert_close(turned[:, position, :, 2 * j : 2 * j + 2], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_rotate_keeps_the_dtype(dtype):
    x = draw(1, 5, 1, 4)
    turned = rotate(x.to(dtype), rotary_table(5, 4, 10000.0, like=x.to(dtype)))
    assert turned.dtype == dtype
    expected = rotate(x, rotary_table(5, 4, 10000.0, like=x))
    torch.testing.assert_close(turned.double(), expected, rtol=0, atol=8 * torch.finfo(dtype).eps)


def test_rotary_angles_stay_exact_at_far_positions():
    position = 2**20
    turns = rotary_table(position + 1, 4, base=10000.0, like=torch.zeros(1, dtype=torch.bfloat16))
    assert turns.dtype == torch.complex64
    assert turns[position, 1].real.item() == pytest.approx(math.cos(position * 10000**-0.5), abs=1e-6)
    assert turns[position, 0].imag.item() == pytest.approx(math.sin(position), abs=1e-6)


@pytest.mark.parametrize(("first", "second"), [([0, 2, 4], [1, 3, 5]), ([0, 1, 2], [3, 4, 5])])
def test_a_rotation_turns_its_pairs_and_leaves_the_rest(first, second):
    rotation = Rotation(torch.tensor([1.0, 0.3, 0.01], dtype=torch.float64), interleaved=second[0] == 1)
    x, positions = draw(2, 5, 8), torch.arange(7, 12)
    angles = torch.outer(positions.double(), rotation.inv_freq)
    pairs = torch.complex(x[..., first], x[..., second]) * torch.polar(torch.ones_like(angles), angles)
    expected = x.clone()
    expected[..., first], expected[..., second] = pairs.real, pairs.imag
    torch.testing.assert_close(rotation.turn(x, *rotation.cos_sin(positions)), expected)
