"""Attention by definition: masks written out pair by pair, and how an implementation is compared with them."""

import math

import torch


def by_hand(rule, n_queries, n, n_heads=1):
    """The mask (H, Q, N) of a rule `rule(head, query, key)`: of the last Q of N positions."""
    positions = range(n - n_queries, n)
    return torch.tensor([[[rule(h, i, j) for j in range(n)] for i in positions] for h in range(n_heads)])


def segment_rule(segment_len, look_back=1):
    return lambda h, i, j: j <= i and i // segment_len - j // segment_len <= look_back


def masked_attention(query, key, value, mask):
    """A position that sees nothing gets zeros."""
    scores = query @ key.mT / math.sqrt(query.shape[-1])
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(-1) * mask @ value


def draw(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def inputs(n_queries, n, batch=2, n_heads=4, width=4):
    """Query, key and value, which differ."""
    shape = batch, n_heads, n, width
    return draw(batch, n_heads, n_queries, width), draw(*shape) + 1, draw(*shape) - 1


def differentiated(attend, *tensors):
    """Output and gradients, under an upstream gradient that tells positions apart."""
    tensors = [x.clone().requires_grad_() for x in tensors]
    output = attend(*tensors)
    return [output, *torch.autograd.grad(output, tensors, draw(*output.shape))]


def assert_attends(attend, mask, *tensors, tolerance=1e-11):
    """Values and gradients are those of masked attention."""
    expected = differentiated(lambda *x: masked_attention(*x, mask), *tensors)
    torch.testing.assert_close(differentiated(attend, *tensors), expected, rtol=tolerance, atol=tolerance)
