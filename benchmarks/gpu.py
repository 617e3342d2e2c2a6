"""Attention patterns, training steps, memory and generation on one GPU; see README.md.

    python benchmarks/gpu.py --minutes 9              # measures, and writes benchmarks/results/gpu/
    python benchmarks/gpu.py --minutes 9              # measures what is still missing
    python benchmarks/gpu.py --device cpu --out here  # tiny sizes, to see that it works

Each measurement is independent of the others: what it finds, or the error that it ends with, is a line of `rows.jsonl`.
What is there is not measured again, except for errors with --retry. If the process dies, that is the error, and the
next call continues behind it.
"""

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import llp
import measuring
import tables
from llp.atomic_files import write_whole
from llp.decoder.kernels.flex import flex_masked_attention
from llp.decoder.kernels.fused import CUDNN, KERNELS, FusedKernel
from llp.decoder.patterns import AttentionPattern
from measuring import Case, Row, gradients, memory, projections
from peers import attentions

Shape = tuple[int, int, int, int]
ROUNDS = {"rounds": 5, "budget_s": 10, "block_s": 0.02}
"""Of each timing; see `in_turn`."""
ON_CUDNN = {"cuda": CUDNN}
"""The kernels of LLP's parts, instead of flash."""
TOLERANCE = {torch.bfloat16: 0.02, torch.float32: 2e-4}
"""The largest error of a correct attention, relative to the largest number of the exact result: a few roundings."""


class Model(NamedTuple):
    """The settings of LLP, and the batch of a training step."""

    settings: dict[str, Any]
    n: int
    batch: int

    def build(self, architecture: str, device: torch.device, **options: bool) -> llp.LLP | llp.Transformer:
        """LLP, or the dense Transformer of the same size."""
        settings = {**self.settings, **options}
        if architecture == "Transformer":
            del settings["segment_len"]
        model: llp.LLP | llp.Transformer = getattr(llp, architecture)(**settings)
        with device:
            model.configure_model()
        return model.to(device)


def model(dim: int, n_layers: int, n_heads: int, n: int, batch: int = 1, **settings: Any) -> Model:
    """A model with 32,000 word pieces and segments of 256, unless the settings say otherwise."""
    common = {"vocab_size": 32_000, "dim": dim, "n_layers": n_layers, "n_heads": n_heads, "segment_len": 256}
    return Model({**common, **settings}, n, batch)


PUBLISHED = {"vocab_size": 28_996, "share_key_value": True, "rotary_first_layer_only": True}
"""What configs/paper/llp.yaml sets."""


class Sizes(NamedTuple):
    """The device, and how large everything is."""

    device: torch.device = torch.device("cuda")
    dtype: torch.dtype = torch.bfloat16
    matrix_size: int = 8192
    segment_len: int = 256
    head_dims: tuple[int, ...] = (64, 128)
    attention_lens: tuple[int, ...] = (2048, 8192, 131_072)
    lengths: tuple[int, ...] = (2048, 8192, 32_768, 131_072, 524_288, 2_097_152)
    context_lens: tuple[int, ...] = (4096, 65_536)
    batches: tuple[int, ...] = (1, 16)
    """How many texts are generated side by side."""
    models: dict[str, Model] = {
        "published": model(768, 24, 6, 2048, 8, **PUBLISHED, dropout=0.05),
        "published, no dropout": model(768, 24, 6, 2048, 8, **PUBLISHED),
        "small": model(768, 12, 12, 8192, 2),
        "d 1,024": model(1024, 24, 8, 8192, 2),
        "d 2,048": model(2048, 24, 16, 8192),
    }
    """For training steps; lengths and generation are measured with `small`."""


TINY = Sizes(
    device=torch.device("cpu"),
    dtype=torch.float32,
    matrix_size=64,
    segment_len=8,
    head_dims=(8,),
    attention_lens=(32,),
    lengths=(16, 32),
    context_lens=(16,),
    batches=(1, 2),
    models={"small": model(16, 2, 2, 32, 2, vocab_size=64, segment_len=8)},
)
LONGEST_DENSE = 2**17
"""The longest text of a step of the Transformer, whose time grows with the square of the length."""


class Measurement(NamedTuple):
    """One line of the results."""

    label: Row
    """What is measured: `part`, `arm` and its sizes."""
    measure: Callable[[], Row]


def measurements(sizes: Sizes) -> Iterator[Measurement]:
    """All of them, the most important ones first, and those that are compiled, which takes long, last."""
    variants = eager_variants(sizes)
    yield from correctness_measurements(variants, sizes, dict.fromkeys([sizes.dtype, torch.float32]))
    yield from attention_measurements(variants, sizes)
    yield from step_measurements(sizes)
    yield from length_measurements(sizes)
    yield from generation_measurements(sizes)
    if sizes.device.type == "cuda":
        variants = compiled_variants(sizes)
        yield from correctness_measurements(variants, sizes, [sizes.dtype])
        yield from attention_measurements(variants, sizes)
        yield from step_measurements(sizes, compile=True)


# Attention alone


class Variant(NamedTuple):
    """One way to compute an attention."""

    pattern: AttentionPattern
    attend: Callable[[Tensor, Tensor, Tensor], Tensor]
    context: Callable[[], AbstractContextManager[object]] = nullcontext


def eager_variants(sizes: Sizes) -> dict[str, Variant]:
    """What needs no compiler."""
    table = attentions(sizes.segment_len)
    found = {name: Variant(table[name], table[name].attend) for name in ("LLP", "SlidingWindow", "Transformer")}
    readable = partial(patch.dict, KERNELS, {sizes.device.type: None})
    found["LLP, copied pairs"] = found["LLP"]._replace(context=readable)
    if sizes.device.type == "cuda":
        found["LLP on cuDNN"] = found["LLP"]._replace(context=partial(patch.dict, KERNELS, ON_CUDNN))
        for name, backend in (("flash", SDPBackend.FLASH_ATTENTION), ("cuDNN", SDPBackend.CUDNN_ATTENTION)):
            found[f"Transformer on {name}"] = found["Transformer"]._replace(context=partial(sdpa_kernel, backend))
    return found


def compiled_variants(sizes: Sizes) -> dict[str, Variant]:
    """LLP and the sliding window compiled, and by FlexAttention."""
    found = {}
    for name in ("LLP", "SlidingWindow"):
        pattern = attentions(sizes.segment_len)[name]
        found[f"{name}, compiled"] = Variant(pattern, torch.compile(pattern.attend, fullgraph=True, dynamic=False))
        found[f"{name}, FlexAttention"] = Variant(pattern, partial(flex_masked_attention, pattern.visible))
    return found


def correctness_measurements(
    variants: dict[str, Variant], sizes: Sizes, dtypes: Iterable[torch.dtype]
) -> Iterator[Measurement]:
    """Each variant for all queries of a length that is no multiple of a segment, and for the last ones alone."""
    m = sizes.segment_len
    n = 4 * m - m // 3
    for dtype, head_dim, n_queries, (arm, variant) in product(dtypes, sizes.head_dims, (n, 2 * m), variants.items()):
        run = partial(correctness, variant, (2, 2, n, head_dim), n_queries, sizes.device, dtype)
        case = {"dtype": str(dtype).removeprefix("torch."), "head_dim": head_dim, "n": n, "queries": n_queries}
        yield Measurement({"part": "correctness", "arm": arm, **case}, run)


def attention_measurements(variants: dict[str, Variant], sizes: Sizes) -> Iterator[Measurement]:
    """Each variant at each length, with 8 heads."""
    for n, head_dim, (arm, variant) in product(sizes.attention_lens, sizes.head_dims, variants.items()):
        run = partial(attention_speed, variant, (1, 8, n, head_dim), sizes)
        yield Measurement({"part": "attention", "arm": arm, "n": n, "head_dim": head_dim}, run)


def correctness(variant: Variant, shape: Shape, n_queries: int, device: torch.device, dtype: torch.dtype) -> Row:
    """Errors of output and gradients against the definition in float64, relative to its largest number."""
    query, key, value, upstream = (projections(shape, device, dtype) for _ in range(4))
    inputs = [query[:, :, -n_queries:].detach().requires_grad_(), key, value]
    upstream = upstream[:, :, -n_queries:].detach()
    exact_inputs = [x.detach().double().requires_grad_() for x in inputs]
    exact = gradients(partial(by_definition, variant.pattern), exact_inputs, upstream.double())
    with variant.context():
        found = gradients(variant.attend, inputs, upstream)
    errors = [relative_error(one, other) for one, other in zip(found, exact, strict=True)]
    return {"error_output": errors[0], "error_gradients": max(errors[1:]), "holds": max(errors) <= TOLERANCE[dtype]}


def by_definition(pattern: AttentionPattern, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention with a mask as large as all pairs; the queries are the last Q of N positions."""
    mask = pattern.mask(query.shape[1], query.shape[2], key.shape[2]).to(query.device)
    scores = (query @ key.mT * query.shape[-1] ** -0.5).masked_fill(~mask, -torch.inf)
    return scores.softmax(-1) @ value


def relative_error(found: Tensor, exact: Tensor) -> float:
    """The largest difference, relative to the largest number."""
    return ((found.double() - exact).abs().max() / exact.abs().max()).item()


def attention_speed(variant: Variant, shape: Shape, sizes: Sizes) -> Row:
    """The time of attention alone, forward and backward."""
    *inputs, upstream = (projections(shape, sizes.device, sizes.dtype) for _ in range(4))
    _, n_heads, n, head_dim = shape
    flops = 3 * 4 * n_heads * head_dim * variant.pattern.pair_count(n_heads, n, n)
    with variant.context():
        return speed(Case(lambda: gradients(variant.attend, inputs, upstream), flops, n), sizes)


# Whole models


def step_measurements(sizes: Sizes, compile: bool = False) -> Iterator[Measurement]:
    """Training steps of each model, dense and with LLP's attention, whose parts may be merged on cuDNN, too."""
    arms = ("LLP", "Transformer", "LLP on cuDNN") if sizes.device.type == "cuda" else ("LLP", "Transformer")
    for (name, of), arm in product(sizes.models.items(), arms):
        kernels = ON_CUDNN if arm.endswith("cuDNN") else {}
        run = partial(step_speed, of, arm.partition(" ")[0], sizes, kernels, compile=compile)
        label = {"part": "step", "arm": f"{arm}, compiled" if compile else arm, "model": name}
        yield Measurement({**label, "n": of.n, "batch": of.batch}, run)


def length_measurements(sizes: Sizes) -> Iterator[Measurement]:
    """Training steps on one text, longer and longer; `checkpointing` recomputes layers in the backward pass."""
    for n, arm in product(sizes.lengths, ("LLP", "LLP, checkpointing", "Transformer")):
        architecture, _, checkpointing = arm.partition(", ")
        if architecture == "LLP" or n <= LONGEST_DENSE:
            of = sizes.models["small"]._replace(n=n, batch=1)
            run = partial(step_speed, of, architecture, sizes, {}, activation_checkpointing=bool(checkpointing))
            yield Measurement({"part": "length", "arm": arm, "n": n}, run)


def generation_measurements(sizes: Sizes) -> Iterator[Measurement]:
    """Tokens after a prompt, one text and several side by side."""
    for n, batch, arm in product(sizes.context_lens, sizes.batches, ("LLP", "Transformer")):
        run = partial(generation_speed, sizes.models["small"], arm, n, batch, sizes)
        yield Measurement({"part": "generation", "arm": arm, "n": n, "batch": batch}, run)


def step_speed(of: Model, architecture: str, sizes: Sizes, kernels: dict[str, FusedKernel], **options: bool) -> Row:
    """Time and peak memory of a whole training step."""
    decoder = of.build(architecture, sizes.device, **options).decoder
    tokens = torch.randint(of.settings["vocab_size"], (of.batch, of.n + 1), device=sizes.device)
    with patch.dict(KERNELS, kernels):
        row = speed(measuring.training_step(decoder, tokens, sizes.dtype), sizes)
    n_parameters = sum(parameter.numel() for parameter in decoder.parameters())
    return row | {"tokens_per_s": 1e6 / row["us_per_trained_token"], "parameters": n_parameters}


@torch.inference_mode()
def generation_speed(of: Model, architecture: str, n: int, batch: int, sizes: Sizes) -> Row:
    """The time to read a prompt of `n` tokens, and the time of a token after it."""
    model = of.build(architecture, sizes.device).to(sizes.dtype).eval()
    prompt = torch.randint(of.settings["vocab_size"], (batch, n), device=sizes.device)
    cache = model.new_cache(batch_size=batch)
    prompt_s = measuring.seconds(lambda: model.extend(prompt, cache, 1))
    (row,) = measuring.in_turn({"token": lambda: model.extend(prompt[:, :1], cache)}, **ROUNDS).values()
    return row | {"tokens_per_s": batch / row["seconds"], "prompt_s": prompt_s, "peak_gb": memory(peak=True) / 1e9}


def speed(case: Case, sizes: Sizes) -> Row:
    """Time of a run, its share of the matrix rate, and its peak memory."""
    case.run()
    measuring.synchronize()
    peak = {"peak_gb": memory(peak=True) / 1e9}  # before the matrices are there
    (row,) = measuring.rates({"run": case}, sizes.matrix_size, sizes.device, sizes.dtype, **ROUNDS).values()
    return row | peak


# The results


def measure_missing(planned: Iterable[Measurement], folder: Path, deadline: float, retry: bool = False) -> None:
    """Measure what the folder has no row of, or with `retry` only an error, as long as there is time."""
    done = {tables.label(row) for row in tables.read(folder) if not (retry and "error" in row)}
    missing = [one for one in planned if tables.label(one.label) not in done]
    for number, one in enumerate(missing):
        if time.time() > deadline:
            print(f"The time is over: {len(missing) - number} measurements are missing. Run the command again.")
            return
        tables.add(folder, [one.label | {"error": "the process ended"}])  # replaced below, unless it is true
        try:
            found = one.measure()
        except Exception as error:
            message = str(error).strip().partition("\n")[0][:160]
            found = {"error": f"{type(error).__name__}: {message}"}
        tables.add(folder, [one.label | found])
        print(*one.label.values(), *(f"{key}={value}" for key, value in found.items()), flush=True)
        release_memory()


def release_memory() -> None:
    """Free what a measurement has left on the device; a device that no longer answers ends the process here."""
    gc.collect()
    if torch.cuda.is_available():
        torch.compiler.reset()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def main(arguments: list[str] | None = None) -> int:
    """Measure until the time is over, and write the report; returns 1 if an attention is not what it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="begin no measurement after this")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="cpu: tiny sizes")
    parser.add_argument("--parts", nargs="+", default=None, help="correctness, attention, step, length, generation")
    parser.add_argument("--retry", action="store_true", help="measure again what ended with an error")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/gpu")
    options = parser.parse_args(arguments)
    deadline = time.time() + 60 * options.minutes
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device = cuda: torch finds no CUDA device; --device cpu measures tiny sizes")
    planned = measurements(Sizes() if options.device == "cuda" else TINY)
    chosen = [one for one in planned if options.parts is None or one.label["part"] in options.parts]
    measure_missing(chosen, options.out, deadline, options.retry)
    rows = tables.read(options.out)
    device = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    versions = f"torch {torch.__version__}, CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    write_whole(options.out / "report.txt", f"{device}, {versions}\n\n{tables.report(rows)}")
    print(options.out / "report.txt")
    return int(any(row.get("holds") is False for row in rows))


if __name__ == "__main__":
    sys.exit(main())
