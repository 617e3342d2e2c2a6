"""The file to take away computes what the package computes."""

import sys
from pathlib import Path

import pytest
import torch

from llp.decoder.patterns import SegmentAttention

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))
from llp_attention import llp_attention, llp_attention_step  # noqa: E402


@pytest.mark.parametrize("n", [1, 3, 4, 7, 8, 21])
def test_the_file_computes_what_the_package_does(n):
    torch.manual_seed(n)
    inputs = [torch.randn(2, 3, n, 8, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    expected = SegmentAttention(4).attend_by_definition(*inputs)
    found = llp_attention(*inputs, 4)
    torch.testing.assert_close(found, expected)
    upstream = torch.randn_like(found)
    of_both = (torch.autograd.grad(output, inputs, upstream) for output in (found, expected))
    for one, other in zip(*of_both, strict=True):
        torch.testing.assert_close(one, other)
    query, key, value = inputs
    torch.testing.assert_close(llp_attention_step(query[:, :, -1:], key, value, 4)[:, :, 0], expected[:, :, -1])


def test_it_can_be_copied():
    lines = (EXAMPLES / "llp_attention.py").read_text(encoding="utf-8").splitlines()
    assert len(lines) < 80
    assert {line.split()[1].partition(".")[0] for line in lines if line.startswith(("import ", "from "))} == {"torch"}
