"""Kept first tokens: the path for devices without a masked kernel that returns log-sum-exps, against the CPU's."""

import pytest
import torch
from torch import Tensor

from llp.decoder.kept_first import BlocksPlan, SegmentsPlan, attend_block, make_plan
from llp.decoder.kernels.merged import Part
from llp.decoder.patterns import AttentionPattern, SegmentAttention, ShiftedSegmentAttention, SlidingWindowAttention


def triple(n_queries: int, n_keys: int) -> tuple[Tensor, Tensor, Tensor]:
    lengths = n_queries, n_keys, n_keys
    return tuple(torch.randn(2, 4, n, 8, dtype=torch.float64, requires_grad=True) for n in lengths)


def blocks_only(pattern: AttentionPattern, n_kept: int, n: int, query: Tensor) -> BlocksPlan:
    """The plan by definition, also where there is a faster one."""
    one_by_one = [make_plan(pattern, n_kept, position, position + 1, 0, query[:, :, :1]) for position in range(n)]
    assert all(isinstance(plan, BlocksPlan) for plan in one_by_one)
    starts = [plan.blocks[0] for plan in one_by_one]
    pad = [torch.nn.functional.pad(mask, (first, n - first - mask.shape[2])) for first, mask, _ in starts]
    kept = torch.cat([kept for _, _, kept in starts], dim=1)
    return BlocksPlan([(0, torch.cat(pad, dim=1), kept)], torch.cat([plan.turns for plan in one_by_one], dim=1))


@pytest.mark.parametrize("pattern", [SegmentAttention(5), SegmentAttention(4, 2), SegmentAttention(6, 0)], ids=str)
def test_segments_without_masks_equal_the_definition_in_blocks(pattern: SegmentAttention) -> None:
    local, kept = triple(33, 33), triple(33, 3)
    plan = make_plan(pattern, 3, 0, 33, 0, local[0])
    assert isinstance(plan, SegmentsPlan)
    definition = blocks_only(pattern, 3, 33, local[0])
    assert torch.equal(plan.turns, definition.turns)
    weights = torch.randn(2, 4, 33, 8, dtype=torch.float64)
    found, wanted = (one.attend(local, kept, 0.3) for one in (plan, definition))
    torch.testing.assert_close(found, wanted)
    grads = [torch.autograd.grad((output * weights).sum(), (*local, *kept)) for output in (found, wanted)]
    for grad, other in zip(*grads, strict=True):
        torch.testing.assert_close(grad, other)


@pytest.mark.parametrize("pattern", [SlidingWindowAttention(7), ShiftedSegmentAttention(6, 4)], ids=str)
def test_scores_of_kept_tokens_in_the_mask_equal_the_merge(pattern: AttentionPattern) -> None:
    local, kept = triple(40, 40), triple(40, 3)
    plan = make_plan(pattern, 3, 0, 40, 0, local[0])
    (_, mask, kept_mask), queries = plan.blocks[0], (2, 0, 40)
    hidden = [torch.zeros(one.shape, dtype=torch.float64).masked_fill(~one, -1e300)[None] for one in (mask, kept_mask)]
    parts = Part(queries, (2, 0, 40), mask=hidden[0]), Part(queries, None, mask=hidden[1], is_second=True)
    torch.testing.assert_close(attend_block(*parts, local, kept, 0.3), plan.attend(local, kept, 0.3))
