"""Losses of `results/pretrained`, computed without this project's code: transformers alone, with explicit masks.

    python benchmarks/attention_cut_independent.py results/pretrained --model FOLDER --data FOLDER

Prints the loss of three books under three attentions, and how far it is from the record (relative). Each takes three
minutes or more on one core, and some GB of memory.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

BOOKS = ("pg19/test/205.txt", "pg19/test/345.txt", "pg19/test/1260.txt")
N, START = 8192, 0


def masks() -> dict[str, Tensor]:
    """Which positions (columns) each position (row) attends to: (N, N)."""
    i = torch.arange(N)
    causal = i[None] <= i[:, None]
    segments = causal & (i[None] // 256 >= i[:, None] // 256 - 1)
    return {"dense": causal, "llp_256_first_0": segments, "llp_256_in_place": segments | causal & (i[None] < 4)}


@torch.inference_mode()
def main() -> None:
    """Print a line for each book and attention."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    options = parser.parse_args()
    lines = (options.folder / "records.jsonl").read_text(encoding="utf-8").splitlines()
    recorded = {(row["part"], row["document"], row["arm"]): row["nats"] for row in map(json.loads, lines)}
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    for book in BOOKS:
        text = (options.data / book).read_text(encoding="utf-8")
        tokens = torch.tensor([START, *tokenizer(text, add_special_tokens=False).input_ids[:N]])
        for arm, mask in masks().items():
            bias = torch.zeros(1, 1, N, N).masked_fill(~mask, torch.finfo(torch.float32).min)
            states = model.base_model(tokens[None, :-1], attention_mask=bias, use_cache=False).last_hidden_state[0]
            chunks = zip(states.split(1024), tokens[1:].split(1024), strict=True)
            nats = sum(
                torch.nn.functional.cross_entropy(model.lm_head(part).double(), targets, reduction="sum").item()
                for part, targets in chunks
            )
            print(f"{book} {arm}: {nats / N:.6f}, {abs(nats / recorded['main', book, arm] - 1):.1e}", flush=True)


if __name__ == "__main__":
    main()
