"""The loss in chunks against torch's cross-entropy over all logits, with every gradient."""

import pytest
import torch
import torch.nn.functional as F

from llp.decoder import loss
from llp.decoder.loss import linear_cross_entropy


def inputs(dtype, n_rows=10, vocab_size=7):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()

    targets = torch.randint(vocab_size, (2, n_rows // 2), generator=generator)
    return draw(2, n_rows // 2, 6), draw(vocab_size, 6), draw(vocab_size), targets


def reference(x, weight, bias, targets):
    each = F.cross_entropy(F.linear(x, weight, bias).flatten(0, 1), targets.flatten(), reduction="none")
    return each.mean(), each.view_as(targets)


@pytest.mark.parametrize("chunk_logits", [1, 21, 28, 2**24])  # 1, 3 and 4 rows at a time; all
def test_exact_in_value_and_gradients(monkeypatch, chunk_logits):
    monkeypatch.setitem(loss.CHUNK_LOGITS, "cpu", chunk_logits)
    *weights, targets = inputs(torch.float64)
    expected_mean, expected_each = reference(*weights, targets)
    mean, each = linear_cross_entropy(*weights, targets)
    torch.testing.assert_close(mean, expected_mean, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(each, expected_each, rtol=1e-13, atol=1e-13)
    assert not each.requires_grad
    expected = torch.autograd.grad(3 * expected_mean, weights)
    for got, grad in zip(torch.autograd.grad(3 * mean, weights), expected, strict=True):
        torch.testing.assert_close(got, grad, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_scoring_computes_no_gradients(monkeypatch, mode):
    *weights, targets = inputs(torch.float64)
    _, expected_each = reference(*weights, targets)
    monkeypatch.setattr(loss, "_add_gradients", lambda *_: pytest.fail("gradients of a score"))
    with mode():
        each = linear_cross_entropy(*weights, targets).each
    torch.testing.assert_close(each, expected_each, rtol=1e-13, atol=1e-13)


def test_logits_never_exist_all_at_once(monkeypatch):
    monkeypatch.setitem(loss.CHUNK_LOGITS, "cpu", 21)
    rows = []
    monkeypatch.setattr(F, "linear", lambda x, w, b: (rows.append(len(x)), torch.addmm(b, x, w.T))[1])
    linear_cross_entropy(*inputs(torch.float64))
    assert rows == [3, 3, 3, 1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_products_in_half_precision_and_the_rest_in_float32(dtype):
    *weights, targets = inputs(torch.float32)
    with torch.autocast("cpu", dtype):
        mean, each = linear_cross_entropy(*weights, targets)
    expected_mean, _ = reference(*weights, targets)
    assert mean.dtype == each.dtype == torch.float32
    assert mean.item() == pytest.approx(expected_mean.item(), rel=3e-2)
    assert mean.item() != expected_mean.item()
    expected = torch.autograd.grad(expected_mean, weights)
    for got, grad in zip(torch.autograd.grad(mean, weights), expected, strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, grad, rtol=0.1, atol=0.02)


def test_weights_in_half_precision_get_gradients_in_half_precision():
    *weights, targets = inputs(torch.bfloat16)
    mean, _ = linear_cross_entropy(*weights, targets)
    assert mean.dtype == torch.float32
    assert {grad.dtype for grad in torch.autograd.grad(mean, weights)} == {torch.bfloat16}
