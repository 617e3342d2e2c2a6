"""Patterns against literal masks."""

import math
from functools import partial

import pytest
import torch

from llp.decoder import patterns
from llp.decoder.kernels import merged, windowed
from llp.decoder.kernels.fused import CPU, KERNELS
from llp.decoder.kernels.merged import can_merge
from llp.decoder.kernels.windowed import window_blocks
from llp.decoder.patterns import (
    causal_attention,
    segment_pair_attention,
    segment_pair_count,
    shifted_segment_attention,
    shifted_segment_count,
    sliding_window_attention,
    sliding_window_count,
)

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


def expected_mask(see, n_queries, n):
    """Rows of the last `n_queries` of n positions: position i sees j where `see(i, j)`."""
    return [[j <= i and see(i, j) for j in range(n)] for i in range(n - n_queries, n)]


LOCAL = {  # a pattern, who sees whom, and the count of its pairs
    "blocks": (
        partial(segment_pair_attention, segment_len=4, look_back=0),
        lambda i, j: i // 4 == j // 4,
        partial(segment_pair_count, segment_len=4, look_back=0),
    ),
    "pairs": (
        partial(segment_pair_attention, segment_len=4),
        lambda i, j: i // 4 - j // 4 <= 1,
        partial(segment_pair_count, segment_len=4),
    ),
    "triples": (
        partial(segment_pair_attention, segment_len=3, look_back=2),
        lambda i, j: i // 3 - j // 3 <= 2,
        partial(segment_pair_count, segment_len=3, look_back=2),
    ),
    "window of 1": (
        partial(sliding_window_attention, window=1),
        lambda i, j: i == j,
        partial(sliding_window_count, window=1),
    ),
    "window of 5": (
        partial(sliding_window_attention, window=5),
        lambda i, j: i - j < 5,
        partial(sliding_window_count, window=5),
    ),
    "window of 33": (  # 32 before itself: the whole neighbourhood of a block, without padding
        partial(sliding_window_attention, window=33),
        lambda i, j: i - j < 33,
        partial(sliding_window_count, window=33),
    ),
}


@pytest.mark.parametrize("merges", [True, False], ids=["fast", "readable"])
@pytest.mark.parametrize("n", [1, 4, 5, 9, 12, 33, 37, 64, 100, 113])
@pytest.mark.parametrize("case", LOCAL)
def test_local_patterns_are_their_masks(monkeypatch, case, n, merges):
    """Values and gradients, where the queries are all positions, and where they are the last ones alone."""
    monkeypatch.setattr(patterns, "can_merge", lambda query, dropout_p: merges)
    attend, see, count = LOCAL[case]
    for n_queries in {n, n // 2 + 1, max(1, n - 3), 1}:
        mask = expected_mask(see, n_queries, n)
        inputs = draw(2, 2, n_queries, 4), draw(2, 2, n, 4) + 1, draw(2, 2, n, 4) - 1
        got = differentiated(attend, *inputs)
        expected = differentiated(partial(masked_attention, mask=mask), *inputs)
        for one, other in zip(got, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)
        assert count(n_queries, n) == sum(map(sum, mask))


@pytest.mark.parametrize("merges", [True, False], ids=["fast", "readable"])
@pytest.mark.parametrize("n", [1, 3, 4, 6, 7, 9, 18, 25])
def test_shifted_segments_are_their_masks(monkeypatch, n, merges):
    monkeypatch.setattr(patterns, "can_merge", lambda query, dropout_p: merges)
    attend = partial(shifted_segment_attention, segment_len=6)
    for n_queries in {n, n // 2 + 1, 1}:
        inputs = draw(2, 4, n_queries, 4), draw(2, 4, n, 4) + 1, draw(2, 4, n, 4) - 1
        in_place = expected_mask(lambda i, j: i // 6 == j // 6, n_queries, n)
        shifted = expected_mask(lambda i, j: (i + 3) // 6 == (j + 3) // 6, n_queries, n)
        mask = [in_place, in_place, shifted, shifted]  # one a head
        expected = differentiated(partial(masked_attention, mask=mask), *inputs)
        for one, other in zip(differentiated(attend, *inputs), expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)
        pairs = sum(map(sum, in_place)) + sum(map(sum, shifted))
        assert shifted_segment_count(n_queries, n, 6) == pairs / 2


@pytest.mark.parametrize("window", [200, 600])
def test_longer_blocks_of_a_longer_window(window):
    """Of 64 queries, 1,024 of them at a time, and of 96; the last block is shorter."""
    inputs = draw(1, 1, 1250, 4), draw(1, 1, 1250, 4) + 1, draw(1, 1, 1250, 4) - 1
    mask = torch.ones(1250, 1250, dtype=torch.bool).tril().triu(1 - window)
    got = differentiated(partial(sliding_window_attention, window=window), *inputs)
    for one, other in zip(got, differentiated(partial(masked_attention, mask=mask), *inputs), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


def test_blocks_cover_each_query_once_and_come_a_thousand_queries_at_a_time():
    for window, first, n in [(5, 0, 300), (97, 0, 5000), (97, 50, 400), (300, 0, 290), (1, 0, 7), (1, 3, 3)]:
        found = window_blocks(2, first, n, window)
        for sample in range(2):
            own = [blocks for blocks in found if blocks.sample == sample]
            places = [p for b in own for p in range(b.start, b.start + b.number * b.length)]
            assert places == list(range(first, n))
        for blocks in found:
            assert blocks.start == blocks.n_before or blocks.n_before >= window - 1  # all that a window holds
            assert blocks.number * blocks.length <= max(1024, blocks.length)


FAST_PATHS = {  # queries, keys, pattern, calls of the kernel for two samples
    "blocks": (13, 13, partial(segment_pair_attention, segment_len=4, look_back=0), 1),
    "triples": (13, 13, partial(segment_pair_attention, segment_len=4, look_back=2), 5),
    "window": (100, 100, partial(sliding_window_attention, window=17), 6),  # 16 alone, two blocks of 32, a rest of 20
    "segments": (13, 13, partial(segment_pair_attention, segment_len=4), 3),
    "whole segments": (12, 12, partial(segment_pair_attention, segment_len=4), 3),
    "many segments": (69, 69, partial(segment_pair_attention, segment_len=2), 7),  # 34 pairs: 16, 16 and 2
    "tail": (5, 13, causal_attention, 2),
    "two queries": (2, 13, causal_attention, 2),  # a single one sees all keys, and needs no parts
}


@pytest.mark.parametrize("case", FAST_PATHS)
def test_the_fast_path_is_the_readable_one(monkeypatch, case):
    n_queries, n, attend, n_calls = FAST_PATHS[case]
    inputs = draw(2, 3, n_queries, 8), draw(2, 3, n, 8) + 1, draw(2, 3, n, 8) - 1
    calls = []

    def counted(forward):
        return lambda *args, **more: (calls.append(None), forward(*args, **more))[1]

    monkeypatch.setattr(windowed, "fused_forward", counted(windowed.fused_forward))
    monkeypatch.setitem(KERNELS, "cpu", CPU._replace(forward=counted(CPU.forward)))
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
    monkeypatch.setattr(patterns, "can_merge", lambda query, dropout_p: merges)
    query, key, value = draw(3, 2, 7, 4), draw(3, 2, 7, 4), draw(3, 2, 7, 4)
    tail = causal_attention(query[:, :, :3], key[:, :, :5], value[:, :, :5])
    expected = masked_attention(query[:, :, :3], key[:, :, :5], value[:, :, :5], CAUSAL_TAIL)
    torch.testing.assert_close(tail, expected, rtol=1e-12, atol=1e-12)
    pairs = segment_pair_attention(query, key, value, segment_len=2)
    torch.testing.assert_close(pairs, masked_attention(query, key, value, SEGMENT_PAIRS), rtol=1e-12, atol=1e-12)
    # One part for the pairs of each sample, of whatever length: here two samples of 20 segments.
    segments = draw(40, 1, 2, 4)
    own, *parts = merged.segment_parts(segments, segments, batch=2, look_back=1)
    assert own == (None, None, True)
    assert parts == [((0, 1, 19), (0, 0, 19), False), ((0, 21, 19), (0, 20, 19), False)]
