"""LLP's attention by each path that there is, beside the dense one by each backend: right or wrong, and how fast."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpu_record import Record, timed
from gpu_sizes import Sizes
from llp.decoder import patterns
from llp.decoder.kernels.fused import CPU, CUDNN, FLASH, KERNELS, FusedKernel
from llp.decoder.patterns import Attend, causal_attention, causal_count, segment_pair_attention, segment_pair_count

Context = Callable[[], AbstractContextManager[Any]]


def merged_on(kernel: FusedKernel, device: torch.device) -> Context:
    """Where attention takes this kernel, whatever the device's own choice is."""
    return lambda: patch.dict(KERNELS, {device.type: kernel})


def dense_on(device: torch.device) -> dict[str, Context]:
    """The backends of dense attention, forced."""
    if device.type == "cpu":
        return {"cpu": nullcontext}
    return {
        "flash": partial(sdpa_kernel, SDPBackend.FLASH_ATTENTION),
        "cuDNN": partial(sdpa_kernel, SDPBackend.CUDNN_ATTENTION),
        "efficient": partial(sdpa_kernel, SDPBackend.EFFICIENT_ATTENTION),
    }


def copied_pairs(query: Tensor, key: Tensor, value: Tensor, segment_len: int) -> Tensor:
    """Neighbouring segments copied into pairs, lower-right causal."""

    def attend(query: Tensor, key: Tensor, value: Tensor, dropout_p: float) -> Tensor:
        return causal_attention(query, key.contiguous(), value.contiguous(), dropout_p)

    return patterns._in_blocks(attend, query, key, value, segment_len, segment_len, 0.0)


def viewed_pairs(query: Tensor, key: Tensor, value: Tensor, segment_len: int) -> Tensor:
    """The same, but of one sequence the pairs are views that overlap."""
    return patterns._in_blocks(causal_attention, query, key, value, segment_len, segment_len, 0.0)


def merged_segments(query: Tensor, key: Tensor, value: Tensor, segment_len: int) -> Tensor:
    """Two parts, merged by their log-sum-exps."""
    return patterns._merged_segments(query, key, value, segment_len, 1)


class Flex:
    """FlexAttention, compiled, whose blocks are made by hand: nothing is as large as n x n."""

    def __init__(self, n: int, segment_len: int, device: torch.device) -> None:
        from torch.nn.attention.flex_attention import BlockMask, flex_attention

        size = 128
        if segment_len % size:
            raise ValueError(f"segments of {segment_len} are no whole blocks of {size}")

        def sees(batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return (i >= j) & (i // segment_len - j // segment_len <= 1)

        rows = torch.arange(n // size, device=device).unsqueeze(1)
        columns = rows.T
        whole = (columns < rows) & (rows * size // segment_len - columns * size // segment_len <= 1)
        blocks = [part for dense in (rows == columns, whole) for part in _ordered(dense)]
        self.mask = BlockMask.from_kv_blocks(*blocks, BLOCK_SIZE=size, mask_mod=sees)
        self.attend = torch.compile(flex_attention, dynamic=False)

    def __call__(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(1, H, N, D) each."""
        return self.attend(query, key, value, block_mask=self.mask)


def _ordered(dense: Tensor) -> tuple[Tensor, Tensor]:
    """How many blocks of each row are computed, (1, 1, R), and which: their columns come first, (1, 1, R, C)."""
    indices = dense.int().argsort(dim=1, descending=True, stable=True)
    return dense.sum(1, dtype=torch.int32)[None, None], indices.int()[None, None]


def paths(device: torch.device, segment_len: int) -> dict[str, tuple[Context, Attend]]:
    """LLP's paths without a compiler, each as the context that it runs in and a function of whole segments."""
    found: dict[str, tuple[Context, Attend]] = {
        "copied pairs": (nullcontext, partial(copied_pairs, segment_len=segment_len)),
        "views as pairs": (nullcontext, partial(viewed_pairs, segment_len=segment_len)),
    }
    for name, kernel in {"flash": FLASH, "cuDNN": CUDNN, **({"CPU": CPU} if device.type == "cpu" else {})}.items():
        found[f"two parts, {name}"] = merged_on(kernel, device), partial(merged_segments, segment_len=segment_len)
    return found


def differentiated(attend: Attend, inputs: list[Tensor], upstream: Tensor) -> list[Tensor]:
    """Output and gradients."""
    output = attend(*inputs)
    return [output, *torch.autograd.grad(output, inputs, upstream)]


def draw(sizes: Sizes, device: torch.device, dtype: torch.dtype, shape: tuple[int, int, int, int]) -> Tensor:
    """(B, H, N, D), as projections leave it: the features of a position lie together."""
    batch, n_heads, n, head_dim = shape
    return torch.randn(batch, n, n_heads, head_dim, device=device, dtype=dtype).transpose(1, 2)


# Right or wrong

TOLERANCE = {torch.bfloat16: 0.02, torch.float32: 2e-4}
"""The largest error, relative to the largest number of the exact result: a few roundings."""


def by_definition(query: Tensor, key: Tensor, value: Tensor, sees: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """In full: position i of N sees j up to itself where `sees(i, j)`; the queries are the last Q positions."""
    n, first = key.shape[2], key.shape[2] - query.shape[2]
    i, j = torch.arange(first, n, device=key.device).unsqueeze(1), torch.arange(n, device=key.device)
    scores = (query @ key.mT * query.shape[-1] ** -0.5).masked_fill(~((j <= i) & sees(i, j)), -torch.inf)
    return scores.softmax(-1) @ value


def errors(
    attend: Attend, sees: Callable[[Tensor, Tensor], Tensor], inputs: list[Tensor], context: Context
) -> dict[str, Any]:
    """How far output and gradients are from those in float64, relative to the largest number of each."""
    inputs = [x.requires_grad_() for x in inputs]
    upstream = torch.randn_like(inputs[0])
    exact_inputs = [x.detach().double().requires_grad_() for x in inputs]
    exact = differentiated(lambda *inputs: by_definition(*inputs, sees), exact_inputs, upstream.double())
    with context():
        got = differentiated(attend, inputs, upstream)
    found = [((one.double() - other).abs().max() / other.abs().max()).item() for one, other in zip(got, exact)]  # noqa: B905
    worst = max(found)
    return {"error_output": found[0], "error_gradients": max(found[1:]), "holds": worst <= TOLERANCE[got[0].dtype]}


def correctness(record: Record, sizes: Sizes, device: torch.device, dtype: torch.dtype, head_dim: int) -> None:
    """Each path, and what the library chooses by itself, against the definition in float64."""
    m = sizes.checked_segment_len
    figures = {"dtype": str(dtype).removeprefix("torch."), "head_dim": head_dim, "m": m}

    def pair(i: Tensor, j: Tensor) -> Tensor:
        return i // m - j // m <= 1

    def check(name: str, attend: Attend, sees: Any, context: Context, n: int, n_queries: int, width: int) -> None:
        def run() -> dict[str, Any]:
            key, value = (draw(sizes, device, dtype, (2, 2, n, width)) for _ in range(2))
            return errors(attend, sees, [draw(sizes, device, dtype, (2, 2, n_queries, width)), key, value], context)

        found = record.attempt(name, run)
        if found is not None:
            record.row(name, **figures, n=n, n_queries=n_queries, **found)

    whole, ragged = 4 * m, 4 * m - m // 3
    for name, (context, attend) in paths(device, m).items():
        check(name, attend, pair, context, whole, whole, head_dim)
    pairs = partial(segment_pair_attention, segment_len=m)
    check("the library's choice", pairs, pair, nullcontext, ragged, ragged, head_dim)
    check("the library's choice, some queries", pairs, pair, nullcontext, ragged, 2 * m, head_dim)
    check("the library's choice, width - 4", pairs, pair, nullcontext, ragged, ragged, head_dim - 4)
    check("lower-right causal", causal_attention, lambda i, j: j <= i, nullcontext, ragged, m, head_dim)


def compiled_correctness(record: Record, sizes: Sizes, device: torch.device) -> None:
    """What a compiler makes of the library's choice, and FlexAttention, against the definition in float64."""
    m, n = sizes.segment_len, 4 * sizes.segment_len
    contestants: dict[str, Callable[[], Attend]] = {
        "the library's choice, compiled": lambda: torch.compile(
            partial(segment_pair_attention, segment_len=m), fullgraph=True
        ),
        "FlexAttention, compiled": lambda: Flex(n, m, device),
    }
    for name, make in contestants.items():

        def run(make: Callable[[], Attend] = make) -> dict[str, Any]:
            inputs = [draw(sizes, device, sizes.dtype, (1, 2, n, 64)) for _ in range(3)]
            return errors(make(), lambda i, j: i // m - j // m <= 1, inputs, nullcontext)

        found = record.attempt(name, run)
        if found is not None:
            record.row(name, dtype=str(sizes.dtype).removeprefix("torch."), head_dim=64, n=n, m=m, **found)


# How fast


@contextmanager
def _prepared(sizes: Sizes, device: torch.device, batch: int, n: int, head_dim: int) -> Iterator[Callable[..., Any]]:
    """Makes runs of a path, forward and backward, on the same tensors."""
    shape = batch, sizes.attention_dim // head_dim, n, head_dim
    inputs = [draw(sizes, device, sizes.dtype, shape).requires_grad_() for _ in range(3)]
    upstream = draw(sizes, device, sizes.dtype, shape)

    def runs(context: Context, attend: Attend) -> Callable[[], Any]:
        def run() -> None:
            with context():
                differentiated(attend, inputs, upstream)

        return run

    yield runs


def speed(
    record: Record,
    sizes: Sizes,
    device: torch.device,
    batch: int,
    n: int,
    head_dim: int,
    segment_len: int,
    flex: bool = False,
) -> None:
    """LLP's paths, or FlexAttention beside the library's choice, in turn with dense attention of each backend."""
    with _prepared(sizes, device, batch, n, head_dim) as runs:
        pair_flops = 3 * 4 * batch * sizes.attention_dim * segment_pair_count(n, n, segment_len)
        dense_flops = 3 * 4 * batch * sizes.attention_dim * causal_count(n, n)
        contestants: dict[str, tuple[Callable[[], Any], float]] = {}
        if flex:
            made = record.attempt("FlexAttention", lambda: Flex(n, segment_len, device))
            if made is not None:
                contestants["FlexAttention"] = runs(nullcontext, made), pair_flops
            chosen = partial(segment_pair_attention, segment_len=segment_len)
            contestants["the library's choice"] = runs(nullcontext, chosen), pair_flops
        else:
            for name, (context, attend) in paths(device, segment_len).items():
                contestants[name] = runs(context, attend), pair_flops
            for name, context in dense_on(device).items():
                if name != "efficient":  # it is only for float32
                    contestants[f"dense, {name}"] = runs(context, causal_attention), dense_flops
        labels = {"batch": batch, "n": n, "m": segment_len, "head_dim": head_dim}
        found = timed(record, device, sizes.dtype, contestants, sizes.rounds, sizes.matrix_size, sizes.at_least_s)
        for name, figures in found.items():
            record.row(name, **labels, **figures, us_per_token=1e3 * figures["ms"] / (batch * n))
