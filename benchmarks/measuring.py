"""What the benchmarks share: runs timed in turn, their share of the machine's rate, and peak memory."""

import math
import multiprocessing
import random
import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from llp.decoder.decoder import TextDecoder

Run = Callable[[], object]
Row = dict[str, Any]
Arm = TypeVar("Arm", bound=Hashable)
T = TypeVar("T")


class Case(NamedTuple):
    """A run whose work is known."""

    run: Run
    flops: float
    """Useful FLOPs of a run, forward and backward, without pairs that a mask hides."""
    trained_tokens: int


def in_turn(
    runs: Mapping[Arm, Run],
    rounds: int,
    budget_s: float = math.inf,
    block_s: float = 0.0,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Arm, Row]:
    """Seconds that a run of each arm takes: the median, the least and the most of all rounds.

    Each round times every arm once, in random order, so that a busy machine slows all of them equally. Every arm runs
    twice before the first round, so that compiling and allocating is not timed.

    Args:
        runs: What is timed, by arm.
        rounds: How many rounds there are.
        budget_s: No round begins later than this, except for the first two.
        block_s: Repeat a short run within a round until this many seconds are timed.
        clock: What is read before and after, in seconds.
    """
    repeats: dict[Arm, int] = {}
    for arm, run in runs.items():
        seconds(run)
        repeats[arm] = math.ceil(max(1.0, block_s / seconds(run)))
    times: dict[Arm, list[float]] = {arm: [] for arm in runs}
    started = time.perf_counter()
    for number in range(rounds):
        if number >= 2 and time.perf_counter() - started > budget_s:
            break
        for arm in random.sample(list(runs), len(runs)):
            times[arm].append(seconds(runs[arm], repeats[arm], clock))
    return {
        arm: {"seconds": statistics.median(found), "least": min(found), "most": max(found), "rounds": len(found)}
        for arm, found in times.items()
    }


def rates(
    cases: Mapping[str, Case],
    matrix_size: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> dict[str, Row]:
    """Times of cases in turn with a product of square matrices, and their share of its FLOPs per second.

    The device and the data type are the product's, and the options those of `in_turn`.
    """
    product = {"matrix product": matrix_product(matrix_size, device, dtype)}
    times = in_turn(product | {arm: case.run for arm, case in cases.items()}, **options)
    rate = 2 * matrix_size**3 / times["matrix product"]["seconds"]
    return {
        arm: {
            **times[arm],
            "matrix_gflops": rate / 1e9,
            "share_of_matrix_rate": case.flops / times[arm]["seconds"] / rate,
            "us_per_trained_token": 1e6 * times[arm]["seconds"] / case.trained_tokens,
        }
        for arm, case in cases.items()
    }


def seconds(run: Run, repeats: int = 1, clock: Callable[[], float] = time.perf_counter) -> float:
    """Seconds that a run takes, as the mean of consecutive runs."""
    synchronize()
    started = clock()
    for _ in range(repeats):
        run()
    synchronize()
    return (clock() - started) / repeats


def synchronize() -> None:
    """Wait until a GPU has finished its work."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def matrix_product(size: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Run:
    """A product of square matrices, 2 `size`³ FLOPs: the practical limit of a machine's FLOPs per second."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return lambda: a @ b


def gradients(
    attend: Callable[[Tensor, Tensor, Tensor], Tensor], inputs: list[Tensor], upstream: Tensor
) -> list[Tensor]:
    """The output of an attention, and the gradients of query, key and value."""
    output = attend(*inputs)
    return [output, *torch.autograd.grad(output, inputs, upstream)]


def projections(shape: tuple[int, int, int, int], device: torch.device | str, dtype: torch.dtype) -> Tensor:
    """A random (B, H, N, D) as projections leave it: the features of a position lie together in memory."""
    batch, n_heads, n, head_dim = shape
    return torch.randn(batch, n, n_heads, head_dim, device=device, dtype=dtype).transpose(1, 2).requires_grad_()


def training_step(decoder: TextDecoder, tokens: Tensor, dtype: torch.dtype = torch.float32) -> Case:
    """A whole training step on `tokens` (B, N + 1): forward, loss, backward and AdamW, under autocast to `dtype`."""
    batch, n = tokens.shape[0], tokens.shape[1] - 1
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=1e-4, fused=True)

    def run() -> None:
        optimizer.zero_grad()
        with torch.autocast(tokens.device.type, dtype, enabled=dtype != torch.float32):
            losses = decoder.loss(tokens[:, :-1], tokens[:, 1:])
        losses.mean.backward()
        optimizer.step()

    return Case(run, 3 * batch * decoder.flops(n), batch * decoder.geometry.positions_out(n))


def memory(peak: bool = False) -> int:
    """Bytes in use now, or at the peak: on the GPU if there is one, otherwise by this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() if peak else torch.cuda.memory_allocated()
    field = "VmHWM:" if peak else "VmRSS:"  # `getrusage` would count the parent process's memory, too
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


def in_own_process(function: Callable[..., T], *args: object) -> T:
    """Call a function in a new process, whose peak memory is that of the call."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()
