"""A linear map of a few rows: the values of the definition, and only where it may stand for torch's own."""

import pytest
import torch

from llp.decoder.block import Linear
from llp.decoder.small_batch_linear import MOST_ROWS, is_small_batch, small_batch_linear


@pytest.mark.parametrize("n", [1, 2, 3, 4, 16])
@pytest.mark.parametrize("shape", [(7, 5), (1024, 6), (2500, 6), (3, 1025)], ids=str)
@pytest.mark.parametrize("has_bias", [True, False])
def test_values(n, shape, has_bias):
    x, weight = torch.randn(n, 1, shape[1], dtype=torch.float64), torch.randn(shape, dtype=torch.float64)
    bias = torch.randn(shape[0], dtype=torch.float64) if has_bias else None
    got = small_batch_linear(x, weight, bias)
    expected = torch.einsum("bni,oi->bno", x, weight) + (bias if has_bias else 0)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    assert got.is_contiguous()


def test_it_stands_in_only_where_nothing_else_changes():
    row = torch.randn(MOST_ROWS, 1, 4)
    with torch.no_grad():
        assert is_small_batch(row)
        assert not is_small_batch(torch.cat((row, row[:1])))
        assert not is_small_batch(row.transpose(0, 1))  # several positions: scores keep their last digits
        assert not is_small_batch(row[:, 0])
        assert not is_small_batch(row.bfloat16())
        assert not is_small_batch(row.to("meta"))
        with torch.autocast("cpu", torch.bfloat16):
            assert not is_small_batch(row)
            assert Linear(4, 4, std=None)(row).dtype == torch.bfloat16
    assert not is_small_batch(row)


def test_a_layer_uses_it(monkeypatch):
    calls = []
    monkeypatch.setattr("llp.decoder.block.small_batch_linear", lambda *inputs: calls.append(inputs) or inputs[0])
    layer = Linear(4, 4, std=None)
    with torch.no_grad():
        layer(torch.zeros(2, 1, 4))
        layer(torch.zeros(2, 2, 4))
    layer(torch.zeros(2, 1, 4))
    assert len(calls) == 1
