"""Every architecture against its peers on a CPU, side by side in one run: time, share of the matrix rate, peak memory.

    pip install -e ".[benchmarks]"
    python benchmarks/compare.py          # two hours on two cores; writes benchmarks/results/cpu/

All arms of a group take turns within each round, so that a busy machine slows them equally. The times are medians.
"""

import argparse
import gc
import statistics
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from torch import nn

import llp
import tables
from llp.decoder.decoder import Decoder
from llp.decoder.loss import linear_cross_entropy
from measuring import Run, gradients, in_own_process, in_turn, matrix_product, memory, projections, training_step
from peers import LikeLLP, attentions, equal_window, perceiver_ar_pytorch

VOCAB_SIZE = 32_000
MATRIX_SIZE = 2048
LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768)
MAX_FLOPS = {"attention": 3e12, "stack": 1.5e12, "perceiver": 2e12, "step": 9e12}
"""FLOPs of a run, times --patience, beyond which it is skipped, like perceiver-ar-pytorch at 32,768 (over 24 GB)."""


class Case(NamedTuple):
    """One arm at one length."""

    name: str
    run: Run
    flops: float
    """Useful FLOPs of a run, forward and backward, without pairs that a mask hides."""
    trained_tokens: int


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


def attention(options: Namespace, n: int) -> Iterator[Case]:
    """Attention alone."""
    shape = 1, options.n_heads, n, options.dim // options.n_heads
    *inputs, upstream = (projections(shape, "cpu", torch.float32) for _ in range(4))
    for name, pattern in attentions(options.segment_len).items():
        if name in options.names:
            yield Case(
                name,
                lambda attend=pattern.attend: gradients(attend, inputs, upstream),
                3 * 4 * options.dim * pattern.pair_count(options.n_heads, n, n),
                n,
            )


def stack(options: Namespace, n: int) -> Iterator[Case]:
    """Embedding, layers and final norm, without the head."""
    for name in (*llp.ARCHITECTURES, "published LLP", "local-attention"):
        if name in options.names:
            yield stack_case(name, options, n, options.stack_layers)


def stack_case(name: str, options: Namespace, n: int, n_layers: int) -> Case:
    """The stack of one architecture or peer."""
    module = decoder(name, options, n, n_layers)
    n_trained = module.geometry.positions_out(n)
    flops = 3 * (module.flops(n) - module.head_flops(n_trained))
    module.head = nn.Identity()  # type: ignore[assignment]
    return Case(name, differentiated(module, n), flops, n_trained)


def perceiver(options: Namespace, n: int) -> Iterator[Case]:
    """Our Perceiver AR and that of a package."""
    ours = stack_case("PerceiverAR", options, n, options.layers)
    yield ours
    peer = perceiver_ar_pytorch(VOCAB_SIZE, options.dim, options.layers, options.n_heads, n, n // 4)
    peer.to_logits = nn.Identity()
    yield Case("perceiver-ar-pytorch", differentiated(peer, n), ours.flops, ours.trained_tokens)


def differentiated(module: nn.Module, n: int) -> Run:
    """Forward and backward through a module on random tokens."""
    tokens = torch.randint(VOCAB_SIZE, (1, n))
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return lambda: torch.autograd.grad(module(tokens).mean(), parameters, allow_unused=True)


def step(options: Namespace, n: int) -> Iterator[Case]:
    """The whole step: forward, loss over 32,000 word pieces, backward, AdamW."""
    for name in (*llp.ARCHITECTURES, "published LLP"):
        if name in options.names:
            yield step_case(name, options, n)


def step_case(name: str, options: Namespace, n: int) -> Case:
    """The step of one architecture or peer."""
    module = decoder(name, options, n, options.layers)
    run = training_step(module, torch.randint(VOCAB_SIZE, (1, n + 1)))
    return Case(name, run, 3 * module.flops(n), module.geometry.positions_out(n))


TIMED: dict[str, Callable[[Namespace, int], Iterator[Case]]] = {
    "attention": attention,
    "stack": stack,
    "perceiver": perceiver,
    "step": step,
}


def timed_rows(group: str, n: int, options: Namespace) -> pd.DataFrame:
    """The times of a group at one length."""
    limit = options.patience * MAX_FLOPS[group]
    cases = [case for case in TIMED[group](options, n) if case.flops <= limit]
    product = "matrix product"
    runs = {product: matrix_product(MATRIX_SIZE)} | {case.name: case.run for case in cases}
    times = in_turn(runs, options.rounds, options.budget_s)
    rate = 2 * MATRIX_SIZE**3 / statistics.median(times[product])
    rows = []
    for case in cases:
        seconds = statistics.median(times[case.name])
        row = {"group": group, "name": case.name, "n": n, "seconds": seconds}
        row |= {"least": min(times[case.name]), "most": max(times[case.name]), "rounds": len(times[case.name])}
        row |= {"matrix_gflops": rate / 1e9, "share_of_matrix_rate": case.flops / seconds / rate}
        rows.append(row | {"us_per_trained_token": 1e6 * seconds / case.trained_tokens})
    return pd.DataFrame(rows)


def memory_rows(n: int, options: Namespace) -> pd.DataFrame:
    """The peak memory of a step at one length, each measured in a process of its own."""
    arms = ["head", *(name for name in (*llp.ARCHITECTURES, "published LLP") if name in options.names)]
    peaks = [in_own_process(peak_memory, name, options, n) for name in arms]
    return pd.DataFrame({"group": "memory", "name": arms, "n": n, "peak_bytes": peaks})


def peak_memory(name: str, options: Namespace, n: int) -> int:
    """Bytes that a step needs at its peak, including weights and optimizer; of `head` the head with its loss alone."""
    matrix_product(256)()  # the libraries' own buffers
    before = memory()
    if name == "head":
        x, weight = (torch.randn(*shape, options.dim, requires_grad=True) for shape in ((1, n), (VOCAB_SIZE,)))
        bias, targets = torch.zeros(VOCAB_SIZE, requires_grad=True), torch.randint(VOCAB_SIZE, (1, n))
        before = memory()
        linear_cross_entropy(x, weight, bias, targets).mean.backward()
    else:
        step_case(name, options, n).run()
    return memory(peak=True) - before


def main(arguments: list[str] | None = None) -> None:
    """Measure what the command line asks for, and write the results after each length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", nargs="+", default=list(tables.GROUPS), choices=tables.GROUPS)
    parser.add_argument("--lengths", nargs="+", type=int, default=list(LENGTHS))
    parser.add_argument("--names", nargs="+", default=[*llp.ARCHITECTURES, *tables.PEERS], help="arms to measure")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--n_heads", type=int, default=8)
    parser.add_argument("--segment_len", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6, help="layers of the whole step, and of Perceiver AR's stacks")
    parser.add_argument("--stack_layers", type=int, default=2, help="layers of the other stacks")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--budget_s", type=float, default=60, help="begin no new round of a length after this")
    parser.add_argument("--patience", type=float, default=1.0, help="above 1: measure longer runs, too")
    parser.add_argument("--add", action="store_true", help="add to the results, replacing what is measured again")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/cpu")
    options = parser.parse_args(arguments)
    found = pd.read_csv(options.out / "results.csv") if options.add else pd.DataFrame()
    for group in options.groups:
        for n in options.lengths:
            new = memory_rows(n, options) if group == "memory" else timed_rows(group, n, options)
            gc.collect()
            found = pd.concat([found, new]).drop_duplicates(["group", "name", "n"], keep="last")
            found = found.sort_values(["group", "n"], key=order, kind="stable")
            tables.write(found, options.out, group)
            print(tables.peak_memory(new) if group == "memory" else tables.times(new), flush=True)


def order(column: pd.Series) -> pd.Series:
    """What rows are sorted by: groups in the order in which they are measured, then lengths."""
    return column.map(tables.GROUPS.index) if column.name == "group" else column


if __name__ == "__main__":
    main()
