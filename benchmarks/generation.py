"""How long a token takes on a CPU, relative to reading all weights once; see README.md.

python benchmarks/generation.py --context_lens 512 4096 16384 --rounds 15
"""

import argparse
import time
from collections.abc import Sequence

import pandas as pd
import torch

import llp
from llp.decoder.extend import extend_each
from llp.generation.sampling import Sampling
from llp.training_module import TrainingModule
from measuring import Run, in_turn

VOCAB_SIZE = 32_000
LONGEST = {"LLP": 65_536, "SlidingWindow": 16_384, "Transformer": 16_384}
"""The longest context of each architecture."""


def token(model: TrainingModule, context_len: int, batch_sizes: Sequence[int] = (1,)) -> Run:
    """Reads one more token of each text after a random prompt; the texts of a batch share its prompt's cache."""
    caches = [model.new_cache(size) for size in batch_sizes]
    for cache, size in zip(caches, batch_sizes, strict=True):
        model.extend(torch.randint(VOCAB_SIZE, (size, context_len)), cache, 1)
    tokens = torch.randint(VOCAB_SIZE, (sum(batch_sizes), 1))
    return lambda: extend_each(model.decoder, tokens, caches)


def reading(model: TrainingModule) -> dict[str, Run]:
    """Reads all weights but the embedding, of which a token needs one row: in a product, and in a bare sum."""
    n_weights = sum(weight.numel() for weight in model.decoder.parameters()) - model.decoder.embed.weight.numel()
    dim = model.settings.dim
    weight, x = torch.randn(n_weights // dim, dim), torch.randn(1, dim)
    return {"reading": lambda: torch.nn.functional.linear(x, weight), "sum": weight.sum}


def main() -> None:
    """Measure, and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--context_lens", nargs="+", type=int, default=[512, 4096, 16_384, 65_536])
    parser.add_argument("--rounds", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(1)  # whose CPU time other processes hardly change
    models: dict[str, TrainingModule] = {
        name: getattr(llp, name)(VOCAB_SIZE, dim=512, n_layers=6, n_heads=8) for name in LONGEST
    }
    for model in models.values():
        model.configure_model()
        model.eval()
    first, n_texts = options.context_lens[0], 16
    logits = 3 * torch.randn(VOCAB_SIZE)  # a tenth of the tokens have 95 % of the probability
    runs: dict[str | tuple[str, int], Run] = {
        **reading(models["LLP"]),
        **{(name, n): token(models[name], n) for n in options.context_lens for name in models if n <= LONGEST[name]},
        "one prompt": token(models["LLP"], first, [n_texts]),
        "own prompts": token(models["LLP"], first, [1] * n_texts),
        "drawing": lambda: Sampling(top_p=0.95).draw(logits),
    }
    with torch.inference_mode():
        times = in_turn(runs, options.rounds, clock=time.thread_time)
    ms = {arm: 1e3 * row["seconds"] for arm, row in times.items()}
    print(f"Reading all weights once takes {ms['reading']:.2f} ms, and summing them {ms['sum']:.2f} ms.")
    print(f"Drawing a token from its logits takes {ms['drawing']:.2f} ms.")
    ratios = {
        name: {n: ms[name, n] / ms["reading"] for n in options.context_lens if (name, n) in ms} for name in models
    }
    print("The time of a token, relative to reading all weights, by the length of its context:")
    print(pd.DataFrame(ratios).sort_index().to_string(float_format="{:.2f}".format, na_rep=""))
    for prompts in ("one prompt", "own prompts"):
        speedup = n_texts * ms["LLP", first] / ms[prompts]
        print(f"LLP, {n_texts} texts with {prompts}, context {first}: {speedup:.2f} times the tokens/s of one text")


if __name__ == "__main__":
    main()
