"""Patterns against literal masks."""

import math
from functools import partial

import pytest
import torch

from llp.decoder import merged_attention, patterns
from llp.decoder.merged_attention import can_merge
from llp.decoder.patterns import causal_attention, segment_pair_attention

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


def differentiated(attend, *inputs):
    """Output and gradients, under an upstream gradient that tells positions apart."""
    inputs = [x.clone().requires_grad_() for x in inputs]
    output = attend(*inputs)
    return [output, *torch.autograd.grad(output, inputs, draw(*output.shape))]


FAST_PATHS = {  # queries, keys, pattern, calls of the kernel for two samples
    "segments": (13, 13, partial(segment_pair_attention, segment_len=4), 3),
    "whole segments": (12, 12, partial(segment_pair_attention, segment_len=4), 3),
    "many segments": (69, 69, partial(segment_pair_attention, segment_len=2), 7),  # 34 pairs: 16, 16 and 2
    "tail": (5, 13, causal_attention, 2),
    "one query": (1, 13, causal_attention, 2),
}


@pytest.mark.parametrize("case", FAST_PATHS)
def test_the_fast_path_is_the_readable_one(monkeypatch, case):
    n_queries, n, attend, n_calls = FAST_PATHS[case]
    inputs = draw(2, 3, n_queries, 8), draw(2, 3, n, 8) + 1, draw(2, 3, n, 8) - 1
    calls = []
    forward = merged_attention._forward
    monkeypatch.setattr(merged_attention, "_forward", lambda *args: (calls.append(None), forward(*args))[1])
    fast = differentiated(attend, *inputs)
    assert len(calls) == n_calls
    monkeypatch.setattr(patterns, "can_merge", lambda query, dropout_p: False)
    readable = differentiated(attend, *inputs)
    assert len(calls) == n_calls
    for one, other in zip(fast, readable, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


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


@pytest.mark.parametrize("merges", [True, False])
def test_the_forms_that_a_compiler_can_trace_have_the_same_masks(monkeypatch, merges):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(patterns, "can_merge", lambda query, dropout_p: merges)
    query, key, value = draw(3, 2, 7, 4), draw(3, 2, 7, 4), draw(3, 2, 7, 4)
    tail = causal_attention(query[:, :, :3], key[:, :, :5], value[:, :, :5])
    expected = masked_attention(query[:, :, :3], key[:, :, :5], value[:, :, :5], CAUSAL_TAIL)
    torch.testing.assert_close(tail, expected, rtol=1e-12, atol=1e-12)
    pairs = segment_pair_attention(query, key, value, segment_len=2)
    torch.testing.assert_close(pairs, masked_attention(query, key, value, SEGMENT_PAIRS), rtol=1e-12, atol=1e-12)
    # One part for the pairs of each sample, of whatever length: here two samples of 20 segments.
    segments = draw(40, 1, 2, 4)
    own, *parts = merged_attention.segment_parts(segments, segments, batch=2, look_back=1)
    assert own == (None, None, True)
    assert parts == [((0, 1, 19), (0, 0, 19), False), ((0, 21, 19), (0, 20, 19), False)]
