"""A pretrained model with LLP's attention against itself with dense attention, on one machine in one run.

    pip install -e ".[pretrained,benchmarks]"
    python benchmarks/pretrained.py FOLDER            # writes benchmarks/results/pretrained/

Prefill is a forward pass over a text, in a process of its own for each length, with its peak memory beyond the weights.
Generation is the time of a token after a text of a length. A step is one of LoRA, with the loss. `from_scratch` is a
training step of all weights with LLP's attention: a Llama of transformers against LLP's own decoder of the same size.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoModelForCausalLM, DynamicCache

from llp import LLP, PretrainedModel
from llp.commands.configurations import find_configuration
from llp.decoder.patterns import SegmentAttention
from llp.hf import LocalCache, set_attention
from llp.hf.decoder import cache_name
from llp.hf.pretrained_model import Lora
from measuring import Row, in_own_process, in_turn, memory, seconds, training_step
from tables import Panel, save

LENGTHS = (2048, 4096, 8192, 16384, 32768, 65536)
LONGEST = {
    "prefill": {"dense": 16384},
    "generation": {"dense": 16384},
    "step": {"dense": 4096, "LLP": 8192},
    "from_scratch": {"dense": 8192, "LLP": 8192},
}
"""Longer ones are not measured: their time grows with the square of the length, or memory ends."""
PIECE_LEN = 4096
ARMS = ("LLP", "dense")
PLOTS = {
    "pretrained.png": [
        Panel("prefill", "seconds", "seconds", "Prefill"),
        Panel("prefill", "peak_mb", "peak memory beyond the weights (MB)", "Memory of prefill"),
        Panel("generation", "seconds", "seconds", "One more token after n"),
    ]
}


def model_of(folder: Path, arm: str) -> Any:
    """The model in evaluation mode, with its attention set or left dense."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if arm == "LLP":
        set_attention(model, SegmentAttention(256))
    return model


@torch.inference_mode()
def prefill(folder: Path, arm: str, n: int, threads: int) -> Row:
    """Seconds and peak memory of reading `n` tokens into a cache, in pieces."""
    torch.set_num_threads(threads)
    model, tokens = model_of(folder, arm), torch.randint(1000, (1, n))
    model(tokens[:, :64], use_cache=False)  # the libraries' own buffers
    before = memory()
    took = seconds(lambda: read(model, arm, tokens))
    return {"seconds": took, "peak_mb": (memory(peak=True) - before) / 1e6}


def read(model: Any, arm: str, tokens: torch.Tensor) -> Any:
    """A cache that holds the tokens, and the position after them."""
    cache = LocalCache(model) if arm == "LLP" else DynamicCache(config=model.config)
    for piece in tokens.split(PIECE_LEN, dim=1):
        model(piece, use_cache=True, logits_to_keep=1, **{cache_name(model): cache})
    return cache


@torch.inference_mode()
def generation(folder: Path, arms: list[str], n: int) -> dict[str, Row]:
    """The time of a token after `n` others, by arm, in turns."""
    tokens, runs = torch.randint(1000, (1, n)), {}
    for arm in arms:
        model = model_of(folder, arm)
        cache = read(model, arm, tokens)
        runs[arm] = partial(model, tokens[:, :1], use_cache=True, **{cache_name(model): cache})
    return in_turn(runs, 11)


def lora_step(folder: Path, arm: str, n: int, threads: int) -> Row:
    """Seconds and peak memory of a step of LoRA on one window of `n` tokens, as the median of three."""
    torch.set_num_threads(threads)
    model = PretrainedModel(path=str(folder), pattern=SegmentAttention(256) if arm == "LLP" else None, lora=Lora())
    model.configure_model()
    step = training_step(model.decoder, torch.randint(1000, (1, n + 1))).run
    before = memory()
    (row,) = in_turn({"step": step}, 3).values()
    return row | {"peak_mb": (memory(peak=True) - before) / 1e6}


def from_scratch(n: int) -> dict[str, Row]:
    """A training step of 58 million weights on one window of `n` tokens, by the blocks around LLP's attention."""
    llama = yaml.safe_load(find_configuration("configs/model/llama_60m.yaml").read_text(encoding="utf-8"))
    models = {
        "LLP, Llama's blocks": PretrainedModel(32000, **llama["model"]["init_args"]),
        "LLP": LLP(32000, dim=512, n_layers=8, n_heads=8, segment_len=256),
    }
    tokens = torch.randint(32000, (1, n + 1))
    for model in models.values():
        model.configure_model()
    return in_turn({arm: training_step(model.decoder, tokens).run for arm, model in models.items()}, 7)


def rows_of(part: str, n: int, options: argparse.Namespace) -> list[Row]:
    """What is measured of a part at one length."""
    arms = [arm for arm in ARMS if n <= LONGEST[part].get(arm, n)]
    if part == "generation":
        found = generation(options.folder, arms, n)
    elif part == "from_scratch":
        found = from_scratch(n) if arms else {}
    else:
        measure = prefill if part == "prefill" else lora_step
        found = {arm: in_own_process(measure, options.folder, arm, n, options.threads) for arm in arms}
    return [{"part": part, "arm": arm, "n": n, **row} for arm, row in found.items()]


def main() -> None:
    """Measure, and write the results after each part of each length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--parts", nargs="+", default=list(LONGEST), choices=LONGEST)
    parser.add_argument("--lengths", nargs="+", type=int, default=LENGTHS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/pretrained")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for n in options.lengths:
        for part in options.parts:
            save(options.out, rows_of(part, n, options), PLOTS)


if __name__ == "__main__":
    main()
