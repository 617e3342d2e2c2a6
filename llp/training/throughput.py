"""What a device could compute at most: the measure of a run's model FLOPs utilisation (MFU)."""

import time
from functools import cache
from typing import NamedTuple

import torch
from lightning.fabric.utilities.throughput import get_available_flops


class PeakRate(NamedTuple):
    """What a device computes at most: `flops` in FLOP/s, and whether that is measured or its maker's figure."""

    flops: float
    is_measured: bool


def compute_dtype(precision: str) -> torch.dtype:
    """In which type matrix products run under one of Lightning's precisions (`bf16-mixed`, `32-true`, ...)."""
    names = {"bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64}
    return names.get(precision.partition("-")[0], torch.float32)


@cache
def peak_rate(device: torch.device, dtype: torch.dtype) -> PeakRate:
    """A device's rate: its maker's figure where Lightning knows it, else what products of matrices reach here.

    It is measured once per process.
    """
    known = get_available_flops(device, dtype) if device.type == "cuda" else None
    return PeakRate(matrix_rate(device, dtype), True) if known is None else PeakRate(known, False)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of products of square matrices.

    On a CPU one thread is measured, and all together do as much each: threads that wait for one another on a busy
    machine would be a hundred times slower than they are.
    """
    n_threads = torch.get_num_threads()
    if device.type != "cpu" or n_threads == 1:
        return _best_rate(device, dtype)
    torch.set_num_threads(1)
    try:
        return n_threads * _best_rate(device, dtype)
    finally:
        torch.set_num_threads(n_threads)


def _best_rate(device: torch.device, dtype: torch.dtype) -> float:
    """The best rate of as many products as a third of a second takes.

    A product can be late, for want of a core say, but never early: the best one is the nearest to what the device can
    do. They grow until one takes a while, so that they fill the device.
    """
    size, best, spent_s = 256, 0.0, 0.0
    matrix = torch.ones(size, size, device=device, dtype=dtype)
    _seconds_of_square(matrix)  # loads libraries
    while spent_s < 0.3:
        seconds = _seconds_of_square(matrix)
        spent_s += seconds
        best = max(best, 2 * size**3 / seconds)
        if seconds < 0.01 and size < 8192:  # so that the next size takes less than 0.1 s
            size *= 2
            matrix = torch.ones(size, size, device=device, dtype=dtype)
    return best


def _seconds_of_square(matrix: torch.Tensor) -> float:
    started = time.perf_counter()
    (matrix @ matrix)[0, 0].item()  # reading a number waits for it
    return time.perf_counter() - started
