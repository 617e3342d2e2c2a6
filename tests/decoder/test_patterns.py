"""Every pattern against its definition, and the definitions against masks and rules written out by hand."""

import pytest
import torch

from helpers.attention import assert_attends, by_hand, inputs, masked_attention
from helpers.own_patterns import OWN_PATTERNS, Blind, Dilated, WindowWithSinks
from llp.decoder.kernels import flex, local
from llp.decoder.patterns import (
    AttentionPattern,
    CausalAttention,
    HistoryAttention,
    SegmentAttention,
    ShiftedSegmentAttention,
    SlidingWindowAttention,
    drop_history,
)

H = 4
RULES = {  # a pattern, and who sees whom by hand: head, query, key
    CausalAttention(): lambda h, i, j: j <= i,
    SegmentAttention(4, look_back=0): lambda h, i, j: j <= i and i // 4 == j // 4,
    SegmentAttention(4): lambda h, i, j: j <= i and i // 4 - j // 4 <= 1,
    SegmentAttention(3, look_back=2): lambda h, i, j: j <= i and i // 3 - j // 3 <= 2,
    SegmentAttention(1): lambda h, i, j: j in (i - 1, i),
    SlidingWindowAttention(1): lambda h, i, j: i == j,
    SlidingWindowAttention(5): lambda h, i, j: 0 <= i - j < 5,
    SlidingWindowAttention(33): lambda h, i, j: 0 <= i - j < 33,  # 32 before itself: a neighbourhood without padding
    ShiftedSegmentAttention(6, H): lambda h, i, j: j <= i and (i + 3 * (h >= 2)) // 6 == (j + 3 * (h >= 2)) // 6,
    WindowWithSinks(): lambda h, i, j: j <= i and (i - j < 4 or j < 2),
    Dilated(): lambda h, i, j: i - j in (0, 3, 6),
    OWN_PATTERNS[2]: lambda h, i, j: i == j or (h % 2 == 0 and j <= i and (i // 4 == j // 4 or j == i // 4 * 4 - 1)),
    Blind(): lambda h, i, j: i >= 3 and j < i,
}
LOCAL = [pattern for pattern in RULES if pattern.reach is not None]
FAST = [pattern for pattern in RULES if type(pattern).attend is not AttentionPattern.attend]


def history_rule(latent_len, segment_len, n):
    first_latent = max(0, n - latent_len)

    def sees(h, i, j):
        if i >= first_latent:
            return j <= i
        return j < first_latent and (segment_len is None or i // segment_len == j // segment_len)

    return sees


@pytest.mark.parametrize("pattern", RULES, ids=repr)
def test_the_definition_is_the_rule(pattern):
    for n_queries, n in [(1, 1), (13, 13), (5, 13), (1, 9)]:
        assert torch.equal(pattern.mask(H, n_queries, n).expand(H, -1, -1), by_hand(RULES[pattern], n_queries, n, H))


@pytest.mark.parametrize("merges", [True, False], ids=["fast", "readable"])
@pytest.mark.parametrize("n", [1, 4, 5, 9, 12, 33, 64, 113])
@pytest.mark.parametrize("pattern", FAST, ids=repr)
def test_fast_paths_are_the_definition(monkeypatch, pattern, n, merges):
    """Values and gradients, where the queries are all positions, and where they are the last ones alone."""
    monkeypatch.setattr(local, "can_merge", lambda query, dropout_p: merges)
    for n_queries in {n, n // 2 + 1, max(1, n - 3), 1}:
        assert_attends(pattern.attend, pattern.mask(H, n_queries, n), *inputs(n_queries, n))


@pytest.mark.parametrize("pattern", RULES, ids=repr)
def test_attention_by_definition(monkeypatch, pattern):
    """In blocks of 5 queries and whole; a position that sees nothing gets zeros, and finite gradients."""
    for block_len in (5, 256):
        monkeypatch.setattr("llp.decoder.patterns._BLOCK_LEN", block_len)
        for n_queries, n in [(1, 1), (13, 13), (6, 13), (1, 13)]:
            assert_attends(pattern.attend_by_definition, pattern.mask(H, n_queries, n), *inputs(n_queries, n))


@pytest.mark.parametrize(("latent_len", "segment_len"), [(5, None), (5, 3), (5, 20), (1, 1), (20, None)])
def test_history_attention_is_its_rule(latent_len, segment_len):
    pattern = HistoryAttention(latent_len, segment_len)
    for n in (1, 5, 6, 13):
        whole = pattern.in_window(n)
        rule = by_hand(history_rule(latent_len, segment_len, n), n, n, H)
        assert torch.equal(whole.mask(H, n, n).expand(H, -1, -1), rule)
        assert whole.pair_count(H, n, n) == rule.sum() / H
        for n_queries in {n, min(n, latent_len), 1, max(1, n - 1)}:
            for attend in (whole.attend, whole.attend_by_definition):
                assert_attends(attend, rule[:, n - n_queries :], *inputs(n_queries, n))


def test_history_attention_in_a_window_that_is_still_filling():
    """Which positions are latents depends on the whole window: 9 of its 12 positions are there."""
    pattern = HistoryAttention(5).in_window(12)
    rule = by_hand(history_rule(5, None, 12), 12, 12, H)[:, :9, :9]
    assert_attends(pattern.attend, rule, *inputs(9, 9))
    with pytest.raises(ValueError, match="in_window"):
        HistoryAttention(5).mask(H, 3, 3)


@pytest.mark.parametrize("pattern", RULES, ids=repr)
def test_pairs_and_first_visible_are_counted_from_the_mask(pattern):
    for n_queries, n in [(1, 1), (40, 40), (17, 40), (1, 40)]:
        mask = by_hand(RULES[pattern], n_queries, n, H)
        assert pattern.pair_count(H, n_queries, n) == mask.sum() / H
    mask = by_hand(RULES[pattern], 40, 40, H) | torch.eye(40, dtype=torch.bool)  # the residual stream keeps itself
    assert torch.equal(pattern.first_visible(H, 40).expand(H, -1), mask.to(torch.uint8).argmax(dim=-1))


@pytest.mark.parametrize("pattern", RULES, ids=repr)
def test_what_a_cache_keeps(pattern):
    """All that queries from a position on can see, from the start of a unit on, and no unit more."""
    seen = by_hand(RULES[pattern], 60, 60, H).any(dim=0)
    for n in range(40):
        first = pattern.first_kept(H, n)
        if pattern.reach is None:
            assert first == 0
            continue
        needed = int(seen[n:].any(dim=0).to(torch.uint8).argmax())
        assert first == needed // pattern.unit * pattern.unit


@pytest.mark.parametrize("pattern", LOCAL, ids=repr)
def test_units_and_reach_are_what_they_say(pattern):
    """The definition repeats after a unit, and the declared reach cuts nothing off that it sees."""
    head, query, key = torch.arange(H).view(-1, 1, 1), torch.arange(40, 60).unsqueeze(1), torch.arange(60)
    seen = pattern.sees(head, query, key)
    assert torch.equal(seen, pattern.sees(head, query + pattern.unit, key + pattern.unit))
    assert torch.equal((seen & (key <= query)).expand(H, -1, -1), pattern.visible(head, query, key).expand(H, -1, -1))
    first = torch.where(pattern.visible(head, query, key), key, 99).amin(dim=-1)
    assert (query.squeeze() // pattern.unit * pattern.unit - first).max() == pattern.reach


def test_a_reach_is_enforced():
    class Forgetful(SlidingWindowAttention):
        def sees(self, head, query, key):
            return torch.ones_like(key - query, dtype=torch.bool)

    assert torch.equal(Forgetful(3).mask(1, 9, 9), SlidingWindowAttention(3).mask(1, 9, 9))


@pytest.mark.parametrize("pattern", [*LOCAL, WindowWithSinks()], ids=repr)
def test_flex_attention_takes_the_same_definition(pattern):
    """On a GPU it is compiled; on a CPU it has no backward pass."""
    for n_queries in (1, 5, 13):
        tensors = [x.float() for x in inputs(n_queries, 13, width=16)]
        got = flex.flex_masked_attention(pattern.visible, *tensors)
        expected = masked_attention(*tensors, pattern.mask(H, n_queries, 13))
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)


def test_dropped_history_is_a_share_of_it_and_the_rest_keeps_its_order():
    key = torch.arange(24.0).view(1, 1, 24, 1).expand(3, 2, -1, -1)
    kept, values = drop_history(key, -key, n_history=20, share=0.25)
    assert kept.shape == (3, 2, 19, 1)
    assert torch.equal(values, -kept)
    for row in kept[:, :, :, 0].reshape(6, 19):
        assert row.tolist() == sorted(set(row.tolist()))
        assert row[-4:].tolist() == [20, 21, 22, 23]
    assert not torch.equal(kept[0], kept[1])  # drawn for each sample
