"""What a device could compute at most: the measure of a run's model FLOPs utilisation (MFU)."""

import time

import torch
from lightning.fabric.utilities.throughput import get_available_flops


def compute_dtype(precision: str) -> torch.dtype:
    """In which type matrix products run under one of Lightning's precisions (`bf16-mixed`, `32-true`, ...)."""
    names = {"bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64}
    return names.get(precision.partition("-")[0], torch.float32)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a device: its maker's figure where Lightning knows it, else what a product of matrices reaches here."""
    known = get_available_flops(device, dtype) if device.type == "cuda" else None
    return known or matrix_rate(device, dtype)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of products of square matrices, of the first size of which one takes a while."""
    for size in (256, 512, 1024, 2048, 4096, 8192):
        matrix = torch.ones(size, size, device=device, dtype=dtype)
        seconds = min(_seconds_of_square(matrix) for _ in range(3))
        if seconds > 0.01:
            break
    return 2 * size**3 / seconds


def _seconds_of_square(matrix: torch.Tensor) -> float:
    started = time.perf_counter()
    (matrix @ matrix)[0, 0].item()  # reading a number waits for it
    return time.perf_counter() - started
