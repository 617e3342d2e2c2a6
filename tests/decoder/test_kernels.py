"""The CUDA operators' part in attention, without CUDA: stand-ins with their signatures compute on the CPU.

Each call of a stand-in goes to the real operator on the meta device, too, so that the installed torch checks its
arguments and says the shapes and types of what is returned.
"""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from functorch.compile import make_boxed_func
from torch._dynamo.backends.common import aot_autograd
from torch._subclasses.fake_tensor import FakeTensorMode

from helpers.attention import assert_attends, by_hand, inputs, segment_rule
from llp.decoder.kernels import fused, local
from llp.decoder.kernels.fused import CUDNN, FLASH, KERNELS, takes_flash
from llp.decoder.kernels.local import causal_attention, segment_pair_attention
from llp.decoder.kernels.merged import can_merge, merged_attention, tail_parts

SEED, OFFSET = torch.zeros(2, dtype=torch.uint64), torch.zeros((), dtype=torch.uint64)


def probabilities(query, key, is_causal, lower_right, scale):
    """Scores (B, H, Q, N), those that are masked at minus infinity, and their log-sum-exps (B, H, Q)."""
    assert query.shape[-1] % 8 == 0, "the CUDA operators refuse other widths"
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if is_causal:
        n_queries, n_keys = scores.shape[-2:]
        mask = torch.ones(n_queries, n_keys, dtype=torch.bool).triu(1 + (n_keys - n_queries if lower_right else 0))
        scores = scores.masked_fill(mask, -torch.inf)
    return scores, scores.logsumexp(-1)


def gradients(grad, query, key, value, output, lse, is_causal, lower_right, scale):
    """By the formula that the operators use: output and log-sum-exps may be those of more keys."""
    scores, _ = probabilities(query, key, is_causal, lower_right, scale)
    weights = (scores - lse.unsqueeze(-1)).exp()
    grad_scores = weights * (grad @ value.mT - (grad * output).sum(-1, keepdim=True))
    grad_scores = grad_scores * (query.shape[-1] ** -0.5 if scale is None else scale)
    return grad_scores @ key, grad_scores.mT @ query, weights.mT @ grad


def checked(name, stand_in):
    """The stand-in for an operator of aten: arguments and returned shapes are those of the installed operator."""

    def call(*arguments, **more):
        on_meta = [x.to("meta", x.dtype) if isinstance(x, torch.Tensor) else x for x in arguments]
        expected = getattr(torch.ops.aten, name)(*on_meta, **more)
        returned = stand_in(*arguments, **more)
        for one, other in zip(returned, expected, strict=True):
            if isinstance(other, torch.Tensor) and other.numel():
                assert one.shape == other.shape
            elif not isinstance(other, torch.Tensor):
                assert one == other
        return returned

    return call


def flash(query, key, value, dropout_p=0.0, is_causal=False, return_debug_mask=False, *, scale=None):
    assert dropout_p == 0.0
    scores, lse = probabilities(query, key, is_causal, True, scale)
    output = scores.softmax(-1) @ value
    return output, lse, None, None, query.shape[2], key.shape[2], SEED, OFFSET, query.new_empty(0)


def flash_backward(grad, query, key, value, output, lse, *more, scale=None):
    cum_q, cum_k, max_q, max_k, dropout_p, is_causal, seed, offset = more
    assert (cum_q, cum_k, max_q, max_k, dropout_p) == (None, None, query.shape[2], key.shape[2], 0.0)
    assert seed is SEED
    assert offset is OFFSET
    return gradients(grad, query, key, value, output, lse, is_causal, True, scale)


def cudnn(query, key, value, bias, wants_lse, dropout_p=0.0, is_causal=False, return_debug_mask=False, *, scale=None):
    assert bias is None
    assert wants_lse
    assert dropout_p == 0.0
    scores, lse = probabilities(query, key, is_causal, False, scale)
    output = scores.softmax(-1) @ value
    return output, lse.unsqueeze(-1), None, None, query.shape[2], key.shape[2], SEED[0], OFFSET, None


def cudnn_backward(grad, query, key, value, output, lse, seed, offset, bias, *more, scale=None):
    cum_q, cum_k, max_q, max_k, dropout_p, is_causal = more
    assert (bias, cum_q, cum_k, max_q, max_k, dropout_p) == (None, None, None, query.shape[2], key.shape[2], 0.0)
    assert seed.shape == ()
    assert offset is OFFSET
    assert lse.shape == (*query.shape[:3], 1)
    return gradients(grad, query, key, value, output, lse.squeeze(-1), is_causal, False, scale)


@pytest.fixture
def stand_ins(monkeypatch):
    """Stand-ins for the CUDA operators; a list of the names that were called."""
    calls = []

    def counted(name, call):
        return lambda *arguments, **more: (calls.append(name), call(*arguments, **more))[1]

    made = {
        "_scaled_dot_product_flash_attention": flash,
        "_scaled_dot_product_flash_attention_backward": flash_backward,
        "_scaled_dot_product_cudnn_attention": cudnn,
        "_scaled_dot_product_cudnn_attention_backward": cudnn_backward,
    }
    operators = {name: counted(name.split("_attention")[0][20:], checked(name, call)) for name, call in made.items()}
    monkeypatch.setattr(fused, "aten", SimpleNamespace(**operators))
    return calls


def use(monkeypatch, kernel, device="cpu"):
    monkeypatch.setitem(KERNELS, device, kernel._replace(takes=lambda query: True))


TAIL = by_hand(lambda h, i, j: j <= i, 5, 13)
SEGMENTS = {"blocks": (4, 0), "pairs": (4, 1), "triples": (3, 2)}
"""Their length, and how many each looks back."""


@pytest.mark.parametrize("head_dim", [8, 6], ids=["whole", "padded"])
@pytest.mark.parametrize(("n_queries", "n"), [(13, 13), (16, 16), (6, 13), (2, 21)])
@pytest.mark.parametrize("case", SEGMENTS)
@pytest.mark.parametrize("kernel", [FLASH, CUDNN], ids=["flash", "cudnn"])
def test_parts_merged_on_the_cuda_operators_are_their_mask(
    monkeypatch, stand_ins, kernel, case, n_queries, n, head_dim
):
    use(monkeypatch, kernel)
    segment_len, look_back = SEGMENTS[case]
    attend = partial(segment_pair_attention, segment_len=segment_len, look_back=look_back)
    mask = by_hand(segment_rule(segment_len, look_back), n_queries, n)
    assert_attends(attend, mask, *inputs(n_queries, n, width=head_dim))
    assert stand_ins


@pytest.mark.parametrize("kernel", [FLASH, CUDNN], ids=["flash", "cudnn"])
def test_the_tail_merged_on_the_cuda_operators_is_its_mask(monkeypatch, stand_ins, kernel):
    use(monkeypatch, kernel)
    assert_attends(lambda *x: merged_attention(*x, tail_parts), TAIL, *inputs(5, 13, width=8))


@pytest.mark.parametrize("head_dim", [8, 5])
def test_the_flash_operator_alone_is_lower_right(monkeypatch, stand_ins, head_dim):
    monkeypatch.setattr(local, "takes_flash", lambda query: True)
    assert_attends(causal_attention, TAIL, *inputs(5, 13, width=head_dim))
    assert stand_ins == ["flash"]  # its gradient, here, is autograd's of the stand-in


def traced(attend, *inputs):
    """Names of the operators in the graphs of forward and backward pass, compiled whole, on the meta device."""
    torch._dynamo.reset()
    graphs = []

    def keep(graph, example_inputs):
        graphs.append([str(node.target) for node in graph.graph.nodes if node.op == "call_function"])
        return make_boxed_func(graph.forward)

    compiled = torch.compile(attend, backend=aot_autograd(fw_compiler=keep, bw_compiler=keep), fullgraph=True)
    inputs = [x.requires_grad_() for x in inputs]
    output = compiled(*inputs)
    for grad, x in zip(torch.autograd.grad(output.sum(), inputs), inputs, strict=True):
        assert grad.shape == x.shape
    assert output.shape == inputs[0].shape
    forward, backward = graphs
    return forward, backward


@pytest.mark.parametrize("kernel", [FLASH, CUDNN], ids=["flash", "cudnn"])
def test_compiled_segments_are_one_graph_of_parts_without_a_mask(monkeypatch, kernel):
    use(monkeypatch, kernel, device="meta")
    name = "flash" if kernel is FLASH else "cudnn"
    inputs = [torch.empty(2, 3, 18, 6, device="meta", dtype=torch.bfloat16) for _ in range(3)]
    forward, backward = traced(partial(segment_pair_attention, segment_len=4), *inputs)
    # The segments themselves, and the pairs of each sample.
    assert forward.count(f"aten._scaled_dot_product_{name}_attention.default") == 3
    assert backward.count(f"aten._scaled_dot_product_{name}_attention_backward.default") == 3
    assert not any("tril" in name or "ones" in name or "bool" in name for name in forward + backward)


def test_compiled_tails_with_dropout_are_the_flash_operators_lower_right_form(monkeypatch):
    monkeypatch.setattr(local, "takes_flash", lambda query: True)
    inputs = [torch.empty(2, 3, n, 8, device="meta", dtype=torch.bfloat16) for n in (5, 13, 13)]
    forward, backward = traced(partial(causal_attention, dropout_p=0.1), *inputs)
    assert "aten._scaled_dot_product_flash_attention.default" in forward
    assert "aten._scaled_dot_product_flash_attention_backward.default" in backward
    assert not any("tril" in name or "ones" in name for name in forward + backward)


def on_cuda(dtype, head_dim=64):
    with FakeTensorMode():  # which needs no device
        return torch.empty(1, 2, 8, head_dim, device="cuda", dtype=dtype)


def test_what_the_flash_operator_takes(monkeypatch):
    monkeypatch.setattr(fused, "_flash_is_available", lambda: True)
    assert takes_flash(on_cuda(torch.bfloat16))
    assert takes_flash(on_cuda(torch.float16, 256))
    assert not takes_flash(on_cuda(torch.float32))
    assert not takes_flash(on_cuda(torch.bfloat16, 257))
    assert not takes_flash(torch.empty(1, 2, 8, 64, dtype=torch.bfloat16))
    assert can_merge(on_cuda(torch.bfloat16), 0.0)
    assert not can_merge(on_cuda(torch.bfloat16), 0.1)
    assert not can_merge(on_cuda(torch.float32), 0.0)
    assert not can_merge(torch.empty(1, 2, 8, 64, device="meta"), 0.0)
    monkeypatch.setattr(fused, "_flash_is_available", lambda: False)
    assert not takes_flash(on_cuda(torch.bfloat16))
    assert not can_merge(on_cuda(torch.bfloat16), 0.0)


@pytest.mark.parametrize("missing", ["hip", "built", "enabled", "capability", None])
def test_when_the_flash_operator_is_available(monkeypatch, missing):
    monkeypatch.setattr(torch.version, "hip", "6.0" if missing == "hip" else None)
    backends = torch.backends.cuda
    monkeypatch.setattr(backends, "is_flash_attention_available", lambda: missing != "built")
    monkeypatch.setattr(backends, "flash_sdp_enabled", lambda: missing != "enabled")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5) if missing == "capability" else (9, 0))
    assert fused._flash_is_available() == (missing is None)
