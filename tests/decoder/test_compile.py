"""`compile: true`: each layer is one graph, the same in value and gradients, and lengths don't make new ones."""

from functools import partial

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor import metrics

from helpers.small_models import ARCHITECTURES, build

# The first four bring all kinds: as it comes, whole segments only, a rest of several positions, a rest of one.
LENGTHS = (11, 16, 14, 15, 13, 12)


SLOWLY = [pytest.param(name, 0.0, "aot_eager", marks=pytest.mark.slow) for name in ARCHITECTURES]
SLOWLY += [pytest.param("LLP", 0.25, "aot_eager", marks=pytest.mark.slow)]


def loss_and_gradients(decoder, tokens):
    loss = decoder.loss(tokens, tokens).mean
    return [loss, *torch.autograd.grad(loss, [*decoder.parameters()])]


@pytest.mark.parametrize(("name", "dropout", "backend"), [("LLP", 0.0, "eager"), *SLOWLY])
def test_one_graph_for_all_lengths(monkeypatch, name, dropout, backend):
    """`eager` traces the forward pass alone, in a third of the time; `aot_eager` traces as for Inductor."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(backend)  # run by torch's own kernels
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    own = {"segment_len": 4} if name == "ShiftedSegments" else {}
    # A break in the graph would be an error.
    compiled = build(name, n_layers=2, dropout=dropout, compile=True, **own).train().decoder
    eager = build(name, n_layers=2, dropout=dropout, **own).train().decoder
    eager.load_state_dict(compiled.state_dict())
    graphs = []
    for n in LENGTHS:
        tokens = torch.randint(19, (2, n))
        torch.manual_seed(n)
        expected = loss_and_gradients(eager, tokens)
        torch.manual_seed(n)
        torch.testing.assert_close(loss_and_gradients(compiled, tokens), expected, rtol=1e-12, atol=1e-12)
        graphs.append(counter.frame_count)
    assert graphs[0] > 0
    assert graphs[-1] == graphs[3]


@pytest.mark.slow
def test_inductor_compiles_it():
    torch._dynamo.reset()
    compiled, eager = build("LLP", n_layers=1, compile=True).decoder, build("LLP", n_layers=1).decoder
    tokens = torch.randint(19, (2, 13))
    before = metrics.generated_kernel_count
    torch.testing.assert_close(loss_and_gradients(compiled, tokens), loss_and_gradients(eager, tokens))
    assert metrics.generated_kernel_count > before


@pytest.mark.slow
@pytest.mark.parametrize("name", ["LLP", "SlidingWindow", "ShiftedSegments"])
def test_layers_of_different_lengths_share_their_graphs(monkeypatch, name):
    """With burn-in each layer lets out less than the one before: one graph for the first length, one for all others."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    compiled, eager = (build(name, n_layers=4, compile=compiles).train().decoder for compiles in (True, False))
    eager.load_state_dict(compiled.state_dict())
    tokens, targets = torch.randint(19, (2, 2, 60))

    def loss_and_gradients(decoder):
        loss = decoder.loss(tokens, targets[:, -12:]).mean
        return [loss, *torch.autograd.grad(loss, [*decoder.parameters()])]

    torch.testing.assert_close(loss_and_gradients(compiled), loss_and_gradients(eager), rtol=1e-12, atol=1e-12)
    assert counter.frame_count <= 3
