"""What the fast paths do on the CPU: which parts they compute, how often, and what they hold in memory."""

from functools import partial

import pytest
import torch

from helpers.attention import assert_attends, by_hand, draw, inputs, masked_attention, segment_rule
from llp.decoder.kernels import local, merged
from llp.decoder.kernels.local import (
    causal_attention,
    segment_pair_attention,
    shifted_segment_attention,
    sliding_window_attention,
)
from llp.decoder.kernels.merged import can_merge


@pytest.mark.parametrize("window", [200, 600])
def test_longer_blocks_of_a_longer_window(window):
    """Of 64 queries, 1,024 of them at a time, and of 96; the last block is shorter."""
    mask = torch.ones(1250, 1250, dtype=torch.bool).tril().triu(1 - window)
    attend = partial(sliding_window_attention, window=window)
    assert_attends(attend, mask, *inputs(1250, 1250, batch=1, n_heads=1))


def test_the_fast_path_holds_where_scores_are_huge():
    """The merge works on logarithms: neither part's weights may overflow or vanish."""
    query, key, value = 100 * draw(1, 1, 8, 4), 100 * draw(1, 1, 8, 4), draw(1, 1, 8, 4)
    attend = partial(segment_pair_attention, segment_len=2)
    assert_attends(attend, by_hand(segment_rule(2), 8, 8), query, key, value, tolerance=1e-9)


def test_dropout_takes_the_readable_path():
    query = draw(1, 2, 8, 4)
    assert can_merge(query, 0.0)
    assert not can_merge(query, 0.1)
    ones = torch.ones_like(query)
    shifted = partial(shifted_segment_attention, dropout_p=0.5)
    for attend, length in ((partial(segment_pair_attention, dropout_p=0.5), 4), (shifted, 4), (shifted, 16)):
        assert attend(query, query, ones, length).std() > 0.1  # without, all weights add up to 1


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
    tail = query[:, :, :3], key[:, :, :5], value[:, :, :5]
    expected = masked_attention(*tail, by_hand(lambda h, i, j: j <= i, 3, 5))
    torch.testing.assert_close(causal_attention(*tail), expected, rtol=1e-12, atol=1e-12)
    pairs = segment_pair_attention(query, key, value, segment_len=2)
    expected = masked_attention(query, key, value, by_hand(segment_rule(2), 7, 7))  # the last segment is shorter
    torch.testing.assert_close(pairs, expected, rtol=1e-12, atol=1e-12)
    # One part for the pairs of each sample, of whatever length: here two samples of 20 segments.
    segments = draw(40, 1, 2, 4)
    parts = merged.segment_parts(segments, segments, batch=2, look_back=1)
    assert [part[:2] for part in parts] == [(None, None), ((0, 1, 19), (0, 0, 19)), ((0, 21, 19), (0, 20, 19))]
