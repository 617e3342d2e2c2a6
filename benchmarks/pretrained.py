"""A pretrained model with LLP's attention against itself with dense attention, on one machine in one run.

    pip install -e ".[pretrained,benchmarks]"
    python benchmarks/pretrained.py FOLDER            # writes benchmarks/results/pretrained/

Prefill is a forward pass over a text, in a process of its own for each length, with its peak memory beyond the weights.
Generation is the time of a token after a text of a length. A step is one of LoRA, with the loss.
"""

import argparse
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from matplotlib.figure import Figure
from transformers import AutoModelForCausalLM, DynamicCache

from llp.atomic_files import write_whole
from llp.decoder.loss import linear_cross_entropy
from llp.decoder.patterns import SegmentAttention
from llp.hf import LocalCache, set_attention
from llp.hf.decoder import cache_name
from llp.hf.pretrained_model import Lora
from measuring import in_own_process, in_turn, memory, seconds

LENGTHS = (2048, 4096, 8192, 16384, 32768, 65536)
LONGEST = {
    "prefill": {"dense": 16384},
    "generation": {"dense": 16384, "LLP": 65536},
    "step": {"dense": 4096, "LLP": 8192},
}
"""Longer ones are not measured: their time grows with the square of the length, or memory ends."""
PIECE_LEN = 4096
ARMS = ("LLP", "dense")


def model_of(folder: Path, arm: str) -> Any:
    """The model in evaluation mode, with its attention set or left dense."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if arm == "LLP":
        set_attention(model, SegmentAttention(256))
    return model


@torch.inference_mode()
def prefill(folder: Path, arm: str, n: int, threads: int) -> dict[str, float]:
    """Seconds and peak memory of reading `n` tokens into a cache, in pieces."""
    torch.set_num_threads(threads)
    model, tokens = model_of(folder, arm), torch.randint(1000, (1, n))
    model(tokens[:, :64], use_cache=False)  # the libraries' own buffers
    before = memory()
    took = seconds(lambda: read(model, arm, tokens))
    return {"seconds": took, "peak_bytes": memory(peak=True) - before}


def read(model: Any, arm: str, tokens: torch.Tensor) -> Any:
    """A cache that holds the tokens, and the position after them."""
    cache = LocalCache(model) if arm == "LLP" else DynamicCache(config=model.config)
    for piece in tokens.split(PIECE_LEN, dim=1):
        model(piece, use_cache=True, logits_to_keep=1, **{cache_name(model): cache})
    return cache


@torch.inference_mode()
def generation(models: dict[str, Any], n: int, rounds: int) -> dict[str, float]:
    """Seconds that a token takes after `n` others, by arm, in turns."""
    tokens = torch.randint(1000, (1, n))
    measured = {arm: model for arm, model in models.items() if n <= LONGEST["generation"][arm]}
    runs: dict[str, Callable[[], object]] = {}
    for arm, model in measured.items():
        cache = read(model, arm, tokens)
        runs[arm] = partial(model, tokens[:, :1], use_cache=True, **{cache_name(model): cache})
    return {arm: statistics.median(times) for arm, times in in_turn(runs, rounds).items()}


def lora_step(folder: Path, arm: str, n: int, threads: int) -> dict[str, float]:
    """Seconds and peak memory of a step of LoRA on one window of `n` tokens, as the median of three."""
    torch.set_num_threads(threads)
    model = model_of(folder, arm)
    Lora().add_to(model)
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    tokens = torch.randint(1000, (1, n + 1))
    before = memory()

    def step() -> None:
        optimizer.zero_grad()
        states = model.base_model(tokens[:, :-1], use_cache=False).last_hidden_state
        linear_cross_entropy(states, model.lm_head.weight, None, tokens[:, 1:]).mean.backward()
        optimizer.step()

    (times,) = in_turn({"step": step}, 3).values()
    return {"seconds": statistics.median(times), "peak_bytes": memory(peak=True) - before}


def main() -> None:
    """Measure, and write the results after each length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--parts", nargs="+", default=["prefill", "generation", "step"])
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/pretrained")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    rows: list[dict[str, Any]] = []
    models = {arm: model_of(options.folder, arm) for arm in ARMS} if "generation" in options.parts else {}
    for n in options.lengths:
        for part, measure in (("prefill", prefill), ("step", lora_step)):
            for arm in ARMS if part in options.parts else ():
                if n <= LONGEST[part].get(arm, n):
                    found = in_own_process(measure, options.folder, arm, n, options.threads)
                    rows.append({"part": part, "arm": arm, "n": n, **found})
        if "generation" in options.parts:
            times = generation(models, n, 11)
            rows += [{"part": "generation", "arm": arm, "n": n, "seconds": took} for arm, took in times.items()]
        write(pd.DataFrame(rows), options.out)
        print(pd.DataFrame([row for row in rows if row["n"] == n]).to_string(index=False), flush=True)


def write(rows: pd.DataFrame, folder: Path) -> None:
    """`results.csv`, and a plot of time and memory against the length."""
    write_whole(folder / "results.csv", rows.to_csv(index=False))
    panels = (
        ("prefill", "seconds", "prefill (s)", 1.0),
        ("prefill", "peak_bytes", "prefill, peak memory beyond the weights (MB)", 1e-6),
        ("generation", "seconds", "a token (s)", 1.0),
    )
    panels = tuple(panel for panel in panels if panel[0] in set(rows["part"]))
    figure = Figure(figsize=(4.5 * len(panels), 4), layout="constrained")
    for axes, (part, column, label, unit) in zip(
        figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
    ):
        for arm, found in rows[rows["part"] == part].groupby("arm"):
            axes.plot(found["n"], unit * found[column], marker="o", label=arm)
        axes.set(xscale="log", yscale="log", xlabel="tokens", ylabel=label)
        lengths = sorted(set(rows["n"]))
        axes.set_xticks(lengths, [f"{n:,}" for n in lengths], minor=False)
        axes.set_xticks([], minor=True)
        axes.yaxis.set_major_formatter("{x:,g}")
        axes.yaxis.set_minor_formatter("{x:,g}")
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(folder / "pretrained.png", dpi=110)


if __name__ == "__main__":
    main()
