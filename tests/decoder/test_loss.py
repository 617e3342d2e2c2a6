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


def test_logits_never_exist_all_at_once(monkeypatch):
    monkeypatch.setitem(loss.CHUNK_LOGITS, "cpu", 21)
    rows = []
    monkeypatch.setattr(F, "linear", lambda x, w, b: (rows.append(len(x)), torch.addmm(b, x, w.T))[1])
    linear_cross_entropy(*inputs(torch.float64))
    assert rows == [3, 3, 3, 1]


# Under autocast, in many chunks: every gradient is that of all rows, not of the last chunk

ROWS, VOCAB, DIM = 60, 11, 8


def small_inputs():
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
    *weights, targets = small_inputs()
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


def test_a_loss_is_not_differentiated_twice():
    """Its gradients are scaled where they lie: a second time they would be scaled twice, without a word."""
    *weights, targets = small_inputs()
    mean, _ = linear_cross_entropy(*weights, targets)
    torch.autograd.grad(mean, weights, retain_graph=True)
    with pytest.raises(TypeError):
        torch.autograd.grad(mean, weights)
