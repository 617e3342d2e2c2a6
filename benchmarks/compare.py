"""Every architecture against its peers, side by side in one run: time, share of the matrix rate, peak memory.

    pip install -e ".[benchmarks]"
    python benchmarks/compare.py                      # the CPU, two hours; writes benchmarks/results/cpu/
    python benchmarks/compare.py --device cuda --dtype bfloat16 --dim 2048 --n_heads 16

All contestants are run alternately within each round, so that a busy machine slows them equally; figures are medians.
"""

import argparse
import gc
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

import llp
import peers
from llp.decoder.loss import linear_cross_entropy
from llp.decoder.patterns import causal_count, segment_pair_count, sliding_window_count
from tables import GROUPS, memory_table, read, time_table, write

VOCAB_SIZE = 32_000
LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768)
LATENT = ("PerceiverAR", "DoubleAttention", "SplitAttention", "CompressedAttention")
MAX_FLOPS = {"attention": 3e12, "stack": 1.5e12, "perceiver": 2e12, "step": 9e12}
"""FLOPs of a run, times --patience, beyond which it is skipped, like perceiver-ar-pytorch at 32,768 (over 24 GB)."""


class Case(NamedTuple):
    """One contestant at one length."""

    name: str
    run: Callable[[], Any]
    flops: float
    """Useful FLOPs of a run, forward and backward, without pairs that a mask hides."""
    trained_tokens: int


def n_trained(name: str, n: int) -> int:
    """Positions with a loss: the latents are a quarter."""
    return n // 4 if name in LATENT else n


class Bench:
    """Builds the contestants of a group for a length."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.device, self.dtype = torch.device(options.device), getattr(torch, options.dtype)
        self.head_dim = options.dim // options.n_heads

    def model(self, name: str, n: int, n_layers: int) -> Any:
        """A model by its name: one of ours, or ours with a peer's attention."""
        o, quarter = self.options, n // 4
        own = {
            "LLP": {"segment_len": o.segment_len},
            "SlidingWindow": {"window": peers.equal_window(o.segment_len)},
            "ShiftedSegments": {"segment_len": 3 * o.segment_len},  # as many pairs as LLP
            "PerceiverAR": {"latent_len": quarter},
            "DoubleAttention": {"latent_len": quarter},
            "SplitAttention": {"latent_len": quarter, "segment_len": o.segment_len},
            "CompressedAttention": {"latent_len": quarter, "history_len": n - quarter, "compressed_len": quarter},
        }
        sizes = {"vocab_size": VOCAB_SIZE, "dim": o.dim, "n_layers": n_layers, "n_heads": o.n_heads}
        if name in llp.ARCHITECTURES:
            model = getattr(llp, name)(**sizes, **own.get(name, {}))
        else:
            model = peers.LikeLLP(**sizes, attend=peers.attention_patterns(o.segment_len)[name], **own["LLP"])
        with self.device:
            model.configure_model()
        return model.to(self.device)

    def autocast(self) -> Any:
        half = self.dtype != torch.float32
        return torch.autocast(self.device.type, self.dtype) if half else nullcontext()

    def wanted(self, *names: str) -> tuple[str, ...]:
        return tuple(name for name in names if name in (self.options.names or names))

    def attention(self, n: int) -> Iterator[Case]:
        o = self.options
        shape = (1, n, o.n_heads, self.head_dim)  # as projections leave them
        inputs = [torch.randn(shape, device=self.device, dtype=self.dtype).transpose(1, 2) for _ in range(3)]
        inputs = [x.requires_grad_() for x in inputs]
        upstream = torch.randn(shape, device=self.device, dtype=self.dtype).transpose(1, 2)
        patterns = peers.attention_patterns(o.segment_len)
        for name in self.wanted(*patterns):
            n_pairs = segment_pair_count(n, n, o.segment_len)
            if name == "Transformer":
                n_pairs = causal_count(n, n)
            if name == "SlidingWindow":
                n_pairs = sliding_window_count(n, n, peers.equal_window(o.segment_len))

            def run(attend: Any = patterns[name]) -> None:
                torch.autograd.grad(attend(*inputs), inputs, upstream)

            yield Case(name, run, 3 * 4 * o.dim * n_pairs, n)

    def stack(self, n: int, n_layers: int | None = None, names: tuple[str, ...] = ()) -> Iterator[Case]:
        """Embedding, layers and final norm; no head."""
        names = names or self.wanted(*llp.ARCHITECTURES, "published LLP", "local-attention")
        tokens = torch.randint(VOCAB_SIZE, (1, n), device=self.device)
        n_layers = n_layers or self.options.stack_layers
        for name in names:
            decoder = self.model(name, n, n_layers).decoder
            flops = 3 * (decoder.flops(n) - decoder.head_flops(n_trained(name, n)))
            decoder.head = nn.Identity()
            yield self._differentiated(name, decoder, tokens, flops, n_trained(name, n))

    def perceiver(self, n: int) -> Iterator[Case]:
        o = self.options
        tokens = torch.randint(VOCAB_SIZE, (1, n), device=self.device)
        (ours,) = self.stack(n, o.layers, ("PerceiverAR",))
        yield ours
        peer = peers.perceiver_ar_pytorch(VOCAB_SIZE, o.dim, o.layers, o.n_heads, n, n // 4).to(self.device)
        peer.to_logits = nn.Identity()
        yield self._differentiated("perceiver-ar-pytorch", peer, tokens, ours.flops, n // 4)

    def _differentiated(self, name: str, module: nn.Module, tokens: torch.Tensor, flops: float, trained: int) -> Case:
        parameters = [p for p in module.parameters() if p.requires_grad]

        def run() -> None:
            with self.autocast():
                output = module(tokens)
            torch.autograd.grad(output.float().mean(), parameters, allow_unused=True)

        return Case(name, run, flops, trained)

    def step(self, n: int, names: tuple[str, ...] = ()) -> Iterator[Case]:
        """The whole step: forward, loss over 32,000 word pieces, backward, AdamW."""
        tokens = torch.randint(VOCAB_SIZE, (1, n + 1), device=self.device)
        for name in names or self.wanted(*llp.ARCHITECTURES, "published LLP"):
            decoder = self.model(name, n, self.options.layers).decoder
            optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-4, fused=True)

            def run(decoder: Any = decoder, optimizer: Any = optimizer) -> None:
                optimizer.zero_grad()
                with self.autocast():
                    losses = decoder(tokens[:, :-1], tokens[:, 1:])
                losses.mean.backward()
                optimizer.step()

            yield Case(name, run, 3 * decoder.flops(n), n_trained(name, n))

    def matrix_rate(self) -> float:
        """FLOPs per second of a product of square matrices, the machine's practical limit."""
        size = 2048 if self.device.type == "cpu" else 8192
        a, b = (torch.randn(size, size, device=self.device, dtype=self.dtype) for _ in range(2))
        return 2 * size**3 / self.seconds(lambda: a @ b)

    def seconds(self, run: Callable[[], Any]) -> float:
        self._wait()
        started = time.perf_counter()
        run()
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def compare(self, group: str, n: int) -> list[dict[str, Any]]:
        """Medians over rounds, in each of which every contestant runs once."""
        o = self.options
        cases = [case for case in getattr(self, group)(n) if case.flops <= o.patience * MAX_FLOPS[group]]
        times: dict[str, list[float]] = {case.name: [] for case in cases}
        rates = [self.matrix_rate()]
        for case in cases:
            self.seconds(case.run)
        started = time.perf_counter()
        for number in range(o.rounds):
            if number >= 2 and time.perf_counter() - started > o.budget_s:
                break
            first = number % len(cases)  # nobody always comes after the same one
            for case in cases[first:] + cases[:first]:
                times[case.name].append(self.seconds(case.run))
            rates.append(self.matrix_rate())
        rate = statistics.median(rates)
        return [
            {
                "group": group,
                "name": case.name,
                "n": n,
                "seconds": statistics.median(times[case.name]),
                "least": min(times[case.name]),
                "most": max(times[case.name]),
                "rounds": len(times[case.name]),
                "matrix_gflops": rate / 1e9,
                "share_of_matrix_rate": case.flops / statistics.median(times[case.name]) / rate,
                "us_per_trained_token": 1e6 * statistics.median(times[case.name]) / case.trained_tokens,
            }
            for case in cases
        ]


def peak_memory(bench: Bench, name: str, n: int) -> int:
    """Bytes that a step needs at its peak, including weights and optimizer; `head` is the loss alone."""
    torch.randn(256, 256, device=bench.device) @ torch.randn(
        256, 256, device=bench.device
    )  # the libraries' own buffers
    before = memory(bench.device)
    if name == "head":
        x = torch.randn(1, n, bench.options.dim, device=bench.device, requires_grad=True)
        weight = torch.randn(VOCAB_SIZE, bench.options.dim, device=bench.device, requires_grad=True)
        bias = torch.zeros(VOCAB_SIZE, device=bench.device, requires_grad=True)
        targets = torch.randint(VOCAB_SIZE, (1, n), device=bench.device)
        before = memory(bench.device)
        with bench.autocast():
            linear_cross_entropy(x, weight, bias, targets).mean.backward()
    else:
        (case,) = bench.step(n, (name,))
        case.run()
    return memory(bench.device, peak=True) - before


def memory(device: torch.device, peak: bool = False) -> int:
    """Bytes in use now, or at the peak: on the device, or by this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    field = "VmHWM:" if peak else "VmRSS:"
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def memory_rows(options: argparse.Namespace, n: int) -> list[dict[str, Any]]:
    """Peak memory, each measurement in its own process."""
    rows = []
    for name in ("head", *(options.names or (*llp.ARCHITECTURES, "published LLP"))):
        command = [sys.executable, __file__, "--peak_memory", name, "--lengths", str(n)]
        for option in ("device", "dtype", "dim", "n_heads", "segment_len", "layers"):
            command += [f"--{option}", str(getattr(options, option))]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        rows.append({"group": "memory", "name": name, "n": n, "peak_bytes": int(done.stdout)})
    return rows


def main() -> None:
    """Measure what the command line asks for, writing after each length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--groups", nargs="+", default=list(GROUPS), choices=GROUPS)
    parser.add_argument("--lengths", nargs="+", type=int, default=list(LENGTHS))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--n_heads", type=int, default=8)
    parser.add_argument("--segment_len", type=int, default=256)
    parser.add_argument("--layers", type=int, default=6, help="layers of the whole step, and of Perceiver AR's stacks")
    parser.add_argument("--stack_layers", type=int, default=2, help="layers of the other stacks, which are all alike")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--budget_s", type=float, default=60, help="start no new round of a length after this")
    parser.add_argument("--patience", type=float, default=1.0, help="above 1, measure longer runs, too")
    parser.add_argument("--names", nargs="+", default=None, help="contestants to measure; default: all")
    parser.add_argument("--add", action="store_true", help="add to the results, replacing what is measured again")
    parser.add_argument("--out", type=Path, default=None, help="default: benchmarks/results/<device>")
    parser.add_argument("--peak_memory", default=None, help=argparse.SUPPRESS)
    options = parser.parse_args()
    bench = Bench(options)
    if options.peak_memory is not None:
        print(peak_memory(bench, options.peak_memory, options.lengths[0]))
        return
    folder = options.out or Path(__file__).parent / "results" / options.device
    found = read(folder / "results.csv") if options.add else []
    for group in options.groups:
        for n in options.lengths:
            new = memory_rows(options, n) if group == "memory" else bench.compare(group, n)
            gc.collect()
            rows = {(row["group"], row["name"], row["n"]): row for row in [*found, *new]}
            found = sorted(rows.values(), key=lambda row: (GROUPS.index(row["group"]), row["n"]))
            write(found, folder)
            print("\n".join(memory_table(new) if group == "memory" else time_table(new)), flush=True)


if __name__ == "__main__":
    main()
