"""Head and loss under autocast, in many chunks: every gradient is that of all rows, not of the last chunk."""

import pytest
import torch
import torch.nn.functional as F

from llp.decoder import loss
from llp.decoder.loss import linear_cross_entropy

ROWS, VOCAB, DIM = 60, 11, 8


def inputs():
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):  # small logits: their roundings are those of numbers near 1
        return torch.randn(shape, generator=generator).div(2).requires_grad_()

    return draw(3, ROWS // 3, DIM), draw(VOCAB, DIM), draw(VOCAB), torch.randint(VOCAB, (3, ROWS // 3))


def in_half_precision(x, weight, bias, targets, dtype, chunk_logits, patch):
    """Losses, and the gradients of 7 times their mean."""
    patch.setitem(loss.CHUNK_LOGITS, "cpu", chunk_logits)
    with torch.autocast("cpu", dtype):
        mean, each = linear_cross_entropy(x, weight, bias, targets)
    return each.detach(), torch.autograd.grad(7 * mean, (x, weight, bias))


@pytest.mark.parametrize(("dtype", "digits"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
@pytest.mark.parametrize("rows_in_chunk", [1, 7, 20])
def test_gradients_are_those_of_all_chunks(monkeypatch, dtype, digits, rows_in_chunk):
    *weights, targets = inputs()
    exact = [w.detach().double().requires_grad_() for w in weights]
    logits = F.linear(*exact).flatten(0, 1)
    expected_each = F.cross_entropy(logits, targets.flatten(), reduction="none").view_as(targets)
    expected = torch.autograd.grad(7 * expected_each.mean(), exact)
    each, grads = in_half_precision(*weights, targets, dtype, rows_in_chunk * VOCAB, monkeypatch)
    whole_each, whole_grads = in_half_precision(*weights, targets, dtype, 2**24, monkeypatch)
    assert not torch.equal(grads[1].double(), expected[1])  # it is half precision
    # A handful of roundings: of the operands, the logits, their gradient and each chunk's product.
    pairs = [(each, whole_each, expected_each), *zip(grads, whole_grads, expected, strict=True)]
    for got, whole, wanted in pairs:
        assert got.dtype == torch.float32
        tolerance = 3 * digits * wanted.abs().max().item()
        torch.testing.assert_close(got.double(), wanted, rtol=0, atol=tolerance)
        torch.testing.assert_close(got, whole, rtol=0, atol=tolerance)


@pytest.mark.parametrize("rows_in_chunk", [1, 5000])
def test_sums_over_rows_lose_nothing(monkeypatch, rows_in_chunk):
    """They are in float32: in bfloat16 a sum stands still where its terms are less than a 256th of it."""
    rows, vocab = 4097, 2
    monkeypatch.setitem(loss.CHUNK_LOGITS, "cpu", rows_in_chunk * vocab)
    weights = [w.requires_grad_() for w in (torch.ones(1, rows, 2), torch.zeros(vocab, 2), torch.zeros(vocab))]
    with torch.autocast("cpu", torch.bfloat16):
        mean, _ = linear_cross_entropy(*weights, torch.zeros(1, rows, dtype=torch.long))
    _, grad_weight, grad_bias = torch.autograd.grad(mean, weights)
    # Both tokens have probability 1/2 everywhere: softmax - one-hot is -1/2 and 1/2 in every row.
    torch.testing.assert_close(grad_bias, torch.tensor([-0.5, 0.5]), rtol=1e-6, atol=0)
    tolerance = 1e-6 if rows_in_chunk == 1 else 2**-8  # a chunk's own product is in half precision
    torch.testing.assert_close(grad_weight, torch.tensor([[-0.5, -0.5], [0.5, 0.5]]), rtol=tolerance, atol=0)


def test_without_autocast_float32_stays_float32():
    *weights, targets = inputs()
    exact = [w.detach().double().requires_grad_() for w in weights]
    expected = F.cross_entropy(F.linear(*exact).flatten(0, 1), targets.flatten())
    mean, _ = linear_cross_entropy(*weights, targets)
    assert mean.item() == pytest.approx(expected.item(), rel=1e-6)
    grads = torch.autograd.grad(mean, weights)
    for got, wanted in zip(grads, torch.autograd.grad(expected, exact), strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("chunk_logits", "rows_in_chunk"), [(1, 1), (21, 1), (22, 2), (80, 7)])
def test_a_chunk_holds_as_many_logits_as_it_may(monkeypatch, chunk_logits, rows_in_chunk):
    monkeypatch.setitem(loss.CHUNK_LOGITS, "cpu", chunk_logits)
    rows = []
    monkeypatch.setattr(F, "linear", lambda x, w, b: (rows.append(len(x)), torch.addmm(b, x, w.T))[1])
    linear_cross_entropy(*inputs())
    assert max(rows) == rows_in_chunk
    assert sum(rows) == ROWS


def test_a_loss_is_not_differentiated_twice():
    """Its gradients are scaled where they lie: a second time they would be scaled twice, without a word."""
    *weights, targets = inputs()
    mean, _ = linear_cross_entropy(*weights, targets)
    torch.autograd.grad(mean, weights, retain_graph=True)
    with pytest.raises(TypeError):
        torch.autograd.grad(mean, weights)
