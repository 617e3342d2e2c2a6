"""How long a token takes, relative to reading all weights once; see README.md.

python benchmarks/generation.py --places 512 4096 16384 --rounds 15
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

import llp
from llp.decoder.extend import extend_each
from llp.decoder.kv_cache import Memory
from llp.generation.sampling import Sampling

VOCAB_SIZE = 32_000
LONGEST = {"LLP": 65_536, "SlidingWindow": 16_384, "Transformer": 16_384}
"""The last place at which an architecture is measured."""


def memory_at(model: Any, place: int, batch_size: int = 1) -> Memory:
    """The memory of texts of `place` tokens, with random keys and values: their time is that of real ones."""
    memory: Memory = model.new_cache(batch_size)
    memory.clear((0, 0))
    memory.n_read = place
    n_heads = model.settings.n_heads
    for layer in memory.layers:
        layer.n_seen = layer._base = layer.first_kept(place)
        shape = batch_size, n_heads, place - layer.n_seen, model.settings.dim // n_heads
        layer.extend(torch.randn(shape), torch.randn(shape))
    return memory


def token(model: Any, place: int, sizes: Sequence[int] = (1,)) -> Callable[[], Any]:
    """What reads one more token of each text, at a place and on from there; `sizes` are those of memories."""
    with torch.inference_mode():
        memories = [memory_at(model, place, size) for size in sizes]
    tokens = torch.randint(VOCAB_SIZE, (sum(sizes), 1))
    return lambda: extend_each(model, tokens, memories)


def reading(model: Any) -> dict[Any, Callable[[], Any]]:
    """What reads all weights but the embedding, of which a token needs one row: in a product, and in a bare sum."""
    n_weights = sum(weight.numel() for weight in model.decoder.parameters()) - model.decoder.embed.weight.numel()
    dim = model.settings.dim
    weight, x = torch.randn(n_weights // dim, dim), torch.randn(1, dim)
    return {"reading": lambda: torch.nn.functional.linear(x, weight), "sum": weight.sum}


def medians(cases: dict[Any, Callable[[], Any]], rounds: int) -> dict[Any, float]:
    """Seconds of this thread's CPU time, medians over rounds in each of which every case runs once, in random order."""
    times: dict[Any, list[float]] = {case: [] for case in cases}
    for run in cases.values():
        run()
    for _ in range(rounds):
        for case, run in random.sample([*cases.items()], len(cases)):
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
    cases: dict[Any, Callable[[], Any]] = reading(models["LLP"])
    for place in options.places:
        cases |= {(name, place): token(models[name], place) for name in models if place <= LONGEST[name]}
    first = options.places[0]
    n = options.batch_size
    cases["of one prompt"], cases["of their own"] = (token(models["LLP"], first, sizes) for sizes in ([n], [1] * n))
    logits = 3 * torch.randn(VOCAB_SIZE)  # a tenth of the tokens have 95 % of the probability
    cases["drawing"] = lambda: Sampling(top_p=0.95).draw(logits)
    with torch.inference_mode():
        found = medians(cases, options.rounds)
    print(f"Reading all weights once: {1e3 * found['reading']:.2f} ms, summing them: {1e3 * found['sum']:.2f} ms.")
    print(f"Drawing a token from its logits: {1e3 * found['drawing']:.2f} ms.")
    print("A token, relative to reading all weights:")
    print(f"{'place':>8}" + "".join(f"{name:>15}" for name in models))
    for place in options.places:
        ratios = [found[name, place] / found["reading"] if (name, place) in found else None for name in models]
        print(f"{place:>8,}" + "".join(f"{'-' if ratio is None else f'{ratio:.2f}':>15}" for ratio in ratios))
    for memories in ("of one prompt", "of their own"):
        speedup = n * found["LLP", first] / found[memories]
        print(f"LLP, {n} texts {memories}, place {first}: {speedup:.2f} times the tokens/s of one text")


if __name__ == "__main__":
    main()
