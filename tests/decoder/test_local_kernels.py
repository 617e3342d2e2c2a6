"""What the fast paths do on the CPU: which parts they compute, how often, and what they hold in memory."""

import math
from functools import partial

import pytest
import torch

from llp.decoder.kernels import local, merged
from llp.decoder.kernels.local import (
    causal_attention,
    segment_pair_attention,
    shifted_segment_attention,
    sliding_window_attention,
)
from llp.decoder.kernels.merged import can_merge

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
    scores = scores.masked_fill(~torch.as_tensor(mask, dtype=torch.bool), -math.inf)
    return scores.softmax(-1) @ value


def draw(*shape):
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(sum(shape)))


def differentiated(attend, *inputs):
    """Output and gradients, under an upstream gradient that tells positions apart."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    output = attend(*inputs)
    return [output, *torch.autograd.grad(output, inputs, draw(*output.shape))]


@pytest.mark.parametrize("window", [200, 600])
def test_longer_blocks_of_a_longer_window(window):
    """Of 64 queries, 1,024 of them at a time, and of 96; the last block is shorter."""
    inputs = draw(1, 1, 1250, 4), draw(1, 1, 1250, 4) + 1, draw(1, 1, 1250, 4) - 1
    mask = torch.ones(1250, 1250, dtype=torch.bool).tril().triu(1 - window)
    got = differentiated(partial(sliding_window_attention, window=window), *inputs)
    for one, other in zip(got, differentiated(partial(masked_attention, mask=mask), *inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_the_fast_path_holds_where_scores_are_huge():
    """The merge works on logarithms: neither part's weights may overflow or vanish."""
    query, key, value = 100 * draw(1, 1, 8, 4), 100 * draw(1, 1, 8, 4), draw(1, 1, 8, 4)
    mask = [[j <= i and j // 2 >= i // 2 - 1 for j in range(8)] for i in range(8)]
    expected = differentiated(partial(masked_attention, mask=mask), query, key, value)
    got = differentiated(partial(segment_pair_attention, segment_len=2), query, key, value)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_dropout_takes_the_readable_path():
    query = draw(1, 2, 8, 4)
    assert can_merge(query, 0.0)
    assert not can_merge(query, 0.1)
    dropped = segment_pair_attention(query, query, torch.ones_like(query), 4, dropout_p=0.5)
    assert dropped.std() > 0.1  # without dropout all weights add up to 1


@pytest.mark.parametrize(
    "attend",
    [
        partial(segment_pair_attention, segment_len=8),
        partial(segment_pair_attention, segment_len=8, look_back=2),
        partial(shifted_segment_attention, segment_len=8),
        partial(sliding_window_attention, window=8),
        partial(sliding_window_attention, window=8, dropout_p=0.1),
    ],
    ids=["pairs", "triples", "shifted", "window", "readable window"],
)
def test_local_patterns_never_hold_all_pairs(attend):
    """The largest tensor that autograd keeps is linear in the length."""
    sizes = []
    for n in (256, 512):
        saved = []

        def keep(tensor, saved=saved):
            saved.append(tensor.numel())
            return tensor

        query, key, value = (draw(1, 2, n, 2).requires_grad_() for _ in range(3))
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            attend(query, key, value)
        sizes.append(max(saved))
    assert sizes[1] <= 2.1 * sizes[0]
    assert sizes[1] < 512 * 512 / 8


@pytest.mark.parametrize("merges", [True, False])
def test_the_forms_that_a_compiler_can_trace_have_the_same_masks(monkeypatch, merges):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(local, "can_merge", lambda query, dropout_p: merges)
    query, key, value = draw(3, 2, 7, 4), draw(3, 2, 7, 4), draw(3, 2, 7, 4)
    tail = causal_attention(query[:, :, :3], key[:, :, :5], value[:, :, :5])
    expected = masked_attention(query[:, :, :3], key[:, :, :5], value[:, :, :5], CAUSAL_TAIL)
    torch.testing.assert_close(tail, expected, rtol=1e-12, atol=1e-12)
    pairs = segment_pair_attention(query, key, value, segment_len=2)
    torch.testing.assert_close(pairs, masked_attention(query, key, value, SEGMENT_PAIRS), rtol=1e-12, atol=1e-12)
    # One part for the pairs of each sample, of whatever length: here two samples of 20 segments.
    segments = draw(40, 1, 2, 4)
    parts = merged.segment_parts(segments, segments, batch=2, look_back=1)
    assert [part[:2] for part in parts] == [(None, None), ((0, 1, 19), (0, 0, 19)), ((0, 21, 19), (0, 20, 19))]
