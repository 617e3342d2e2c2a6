"""How long a token takes, relative to reading all weights once; see README.md.

python benchmarks/generation.py --places 512 4096 16384 --rounds 15
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

import llp
from llp.decoder.memory import Memory
from llp.generation.reading import extend_each

VOCAB_SIZE = 32_000
LONGEST = {"LLP": 65_536, "SlidingWindow": 16_384, "Transformer": 16_384}
"""The last place at which an architecture is measured."""


def memory_at(model: Any, place: int) -> Memory:
    """The memory of a text of `place` tokens, with random keys and values: their time is that of real ones."""
    memory: Memory = model.new_memory()
    memory.clear((0, 0))
    memory.n_read = place
    n_heads = model.settings.n_heads
    for layer in memory.layers:
        layer.n_seen = layer._base = layer.first_kept(place)
        shape = 1, n_heads, place - layer.n_seen, model.settings.dim // n_heads
        layer.extend(torch.randn(shape), torch.randn(shape))
    return memory


def token(model: Any, place: int, batch_size: int = 1) -> Callable[[], Any]:
    """What reads one more token of each text of a batch, at a place and on from there."""
    with torch.inference_mode():
        memories = [memory_at(model, place) for _ in range(batch_size)]
    tokens = torch.randint(VOCAB_SIZE, (batch_size, 1))
    return lambda: extend_each(model, tokens, memories)


def reading(model: Any) -> Callable[[], Any]:
    """What reads all weights but the embedding, of which a token needs one row, in a matrix-vector product."""
    n_weights = sum(weight.numel() for weight in model.decoder.parameters()) - model.decoder.embed.weight.numel()
    dim = model.settings.dim
    weight, x = torch.randn(n_weights // dim, dim), torch.randn(1, dim)
    return lambda: torch.nn.functional.linear(x, weight)


def medians(cases: dict[Any, Callable[[], Any]], rounds: int) -> dict[Any, float]:
    """Seconds of this thread's CPU time, medians over rounds in each of which every case runs once."""
    times: dict[Any, list[float]] = {case: [] for case in cases}
    for run in cases.values():
        run()
    for _ in range(rounds):
        for case, run in cases.items():
            started = time.thread_time()
            run()
            times[case].append(time.thread_time() - started)
    return {case: statistics.median(of_case) for case, of_case in times.items()}


def main() -> None:
    """Measure and print ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--places", nargs="+", type=int, default=[512, 4096, 16_384, 65_536])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--n_heads", type=int, default=8)
    parser.add_argument("--batch_size", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)  # whose CPU time other processes hardly change
    size = {"dim": options.dim, "n_layers": options.layers, "n_heads": options.n_heads}
    models = {name: getattr(llp, name)(VOCAB_SIZE, **size) for name in LONGEST}
    for model in models.values():
        model.configure_model()
        model.eval()
    cases: dict[Any, Callable[[], Any]] = {"reading": torch.inference_mode()(reading(models["LLP"]))}
    for place in options.places:
        cases |= {(name, place): token(models[name], place) for name in models if place <= LONGEST[name]}
    first = options.places[0]
    cases["batch"] = token(models["LLP"], first, options.batch_size)
    found = medians(cases, options.rounds)
    print(f"Reading all weights once: {1e3 * found['reading']:.2f} ms. Relative to that, per token:")
    print(f"{'place':>8}" + "".join(f"{name:>15}" for name in models))
    for place in options.places:
        ratios = [found[name, place] / found["reading"] if (name, place) in found else None for name in models]
        print(f"{place:>8,}" + "".join(f"{'-' if ratio is None else f'{ratio:.2f}':>15}" for ratio in ratios))
    speedup = options.batch_size * found["LLP", first] / found["batch"]
    print(f"LLP, batch {options.batch_size}, place {first}: {speedup:.2f} times the tokens/s of batch 1")


if __name__ == "__main__":
    main()
