"""Every architecture against its peers on a CPU, side by side in one run: time, share of the matrix rate, peak memory.

    pip install -e ".[benchmarks]"
    python benchmarks/compare.py          # two hours on two cores; writes benchmarks/results/cpu/

All arms of a group take turns within each round, so that a busy machine slows them equally. The times are medians.
"""

import argparse
import gc
from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

import llp
import measuring
import tables
from llp.decoder.decoder import Decoder
from llp.decoder.loss import linear_cross_entropy
from measuring import Case, Row, Run
from peers import LikeLLP, attentions, equal_window, perceiver_ar_pytorch
from tables import Panel

VOCAB_SIZE = 32_000
MATRIX_SIZE = 2048
LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768)
STACKS = (*llp.ARCHITECTURES, "published LLP", "local-attention")
STEPS = (*llp.ARCHITECTURES, "published LLP")


def decoder(name: str, options: Namespace, n: int, n_layers: int) -> Decoder:
    """The decoder of an architecture, or LLP's with the attention of a peer; a quarter of `n` are latents."""
    m, quarter = options.segment_len, n // 4
    own = {
        "SlidingWindow": {"window": equal_window(m)},
        "ShiftedSegments": {"segment_len": 3 * m},  # as many pairs as LLP
        "PerceiverAR": {"latent_len": quarter},
        "DoubleAttention": {"latent_len": quarter},
        "SplitAttention": {"latent_len": quarter, "segment_len": m},
        "CompressedAttention": {"latent_len": quarter, "history_len": n - quarter, "compressed_len": quarter},
        "Transformer": {},
    }.get(name, {"segment_len": m})
    common = {"vocab_size": VOCAB_SIZE, "dim": options.dim, "n_layers": n_layers, "n_heads": options.n_heads}
    if name in llp.ARCHITECTURES:
        model = getattr(llp, name)(**common, **own)
    else:
        model = LikeLLP(**common, **own, pattern=attentions(m)[name])
    model.configure_model()
    return model.decoder


def attention(options: Namespace, n: int) -> dict[str, Case]:
    """Attention alone."""
    shape = 1, options.n_heads, n, options.dim // options.n_heads
    *inputs, upstream = (measuring.projections(shape, "cpu", torch.float32) for _ in range(4))
    return {
        name: Case(
            partial(measuring.gradients, pattern.attend, inputs, upstream),
            3 * 4 * options.dim * pattern.pair_count(options.n_heads, n, n),
            n,
        )
        for name, pattern in attentions(options.segment_len).items()
        if name in options.names
    }


def stack(options: Namespace, n: int) -> dict[str, Case]:
    """Embedding, layers and final norm, without the head."""
    return {name: stack_case(name, options, n, options.stack_layers) for name in STACKS if name in options.names}


def stack_case(name: str, options: Namespace, n: int, n_layers: int) -> Case:
    """The stack of one architecture or peer."""
    module = decoder(name, options, n, n_layers)
    n_trained = module.geometry.positions_out(n)
    flops = 3 * (module.flops(n) - module.head_flops(n_trained))
    module.head = nn.Identity()  # type: ignore[assignment]
    return Case(differentiated(module, n), flops, n_trained)


def perceiver(options: Namespace, n: int) -> dict[str, Case]:
    """Our Perceiver AR and that of a package."""
    ours = stack_case("PerceiverAR", options, n, options.layers)
    peer = perceiver_ar_pytorch(VOCAB_SIZE, options.dim, options.layers, options.n_heads, n, n // 4)
    peer.to_logits = nn.Identity()
    return {"PerceiverAR": ours, "perceiver-ar-pytorch": ours._replace(run=differentiated(peer, n))}


def differentiated(module: nn.Module, n: int) -> Run:
    """Forward and backward through a module on random tokens."""
    tokens = torch.randint(VOCAB_SIZE, (1, n))
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return lambda: torch.autograd.grad(module(tokens).mean(), parameters, allow_unused=True)


def step(options: Namespace, n: int) -> dict[str, Case]:
    """The whole step: forward, loss over 32,000 word pieces, backward, AdamW."""
    return {name: step_case(name, options, n) for name in STEPS if name in options.names}


def step_case(name: str, options: Namespace, n: int) -> Case:
    """The step of one architecture or peer."""
    tokens = torch.randint(VOCAB_SIZE, (1, n + 1))
    return measuring.training_step(decoder(name, options, n, options.layers), tokens)


class Group(NamedTuple):
    """Cases that take turns, at one length."""

    cases: Callable[[Namespace, int], dict[str, Case]]
    max_flops: float
    """Longer runs, times --patience, are skipped, like perceiver-ar-pytorch at 32,768, which takes over 24 GB."""
    title: str


TIMED = {
    "attention": Group(attention, 3e12, "Attention alone, forward and backward"),
    "stack": Group(stack, 1.5e12, "The stack of layers, forward and backward"),
    "perceiver": Group(perceiver, 2e12, "Perceiver AR's stack, forward and backward"),
    "step": Group(step, 9e12, "A whole training step, with loss and optimizer"),
}
PANELS = [
    *(Panel(name, "us_per_trained_token", "time per trained token (µs)", group.title) for name, group in TIMED.items()),
    Panel("memory", "peak_gb", "peak memory (GB)", "Peak memory of a training step"),
]
PLOTS = {f"{panel.part}.png": [panel] for panel in PANELS}


def rows_of(group: str, n: int, options: Namespace) -> list[Row]:
    """The times of a group at one length, or the peaks of memory, each measured in a process of its own."""
    if group == "memory":
        arms = ["head", *(name for name in STEPS if name in options.names)]
        found = {name: {"peak_gb": measuring.in_own_process(peak_memory, name, options, n) / 1e9} for name in arms}
    else:
        limit = options.patience * TIMED[group].max_flops
        cases = {name: case for name, case in TIMED[group].cases(options, n).items() if case.flops <= limit}
        found = measuring.rates(cases, MATRIX_SIZE, rounds=options.rounds, budget_s=options.budget_s)
    return [{"part": group, "arm": name, "n": n, **row} for name, row in found.items()]


def peak_memory(name: str, options: Namespace, n: int) -> int:
    """Bytes that a step needs at its peak, including weights and optimizer; of `head` the head with its loss alone."""
    measuring.matrix_product(256)()  # the libraries' own buffers
    before = measuring.memory()
    if name == "head":
        x, weight = (torch.randn(*shape, options.dim, requires_grad=True) for shape in ((1, n), (VOCAB_SIZE,)))
        bias, targets = torch.zeros(VOCAB_SIZE, requires_grad=True), torch.randint(VOCAB_SIZE, (1, n))
        before = measuring.memory()
        linear_cross_entropy(x, weight, bias, targets).mean.backward()
    else:
        step_case(name, options, n).run()
    return measuring.memory(peak=True) - before


def main(arguments: list[str] | None = None) -> None:
    """Measure what the command line asks for, and write the results after each length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    groups = [panel.part for panel in PANELS]
    parser.add_argument("--groups", nargs="+", default=groups, choices=groups)
    parser.add_argument("--lengths", nargs="+", type=int, default=list(LENGTHS))
    parser.add_argument("--names", nargs="+", default=list(STACKS), help="arms to measure")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--n_heads", type=int, default=8)
    parser.add_argument("--segment_len", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6, help="layers of the whole step, and of Perceiver AR's stacks")
    parser.add_argument("--stack_layers", type=int, default=2, help="layers of the other stacks")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--budget_s", type=float, default=60, help="begin no new round of a length after this")
    parser.add_argument("--patience", type=float, default=1.0, help="above 1: measure longer runs, too")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/cpu")
    options = parser.parse_args(arguments)
    for group in options.groups:
        for n in options.lengths:
            tables.save(options.out, rows_of(group, n, options), PLOTS)
            gc.collect()


if __name__ == "__main__":
    main()
