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


def matrix_rate(device: torch.device, dtype: torch.dtype, size: int = 1024) -> float:
    """FLOP/s of a product of two square matrices, the best of a few; of one, where the device is slow at it."""
    matrix = torch.ones(size, size, device=device, dtype=dtype)
    rates: list[float] = []
    while len(rates) < 5 and (not rates or rates[-1] > 1e10):
        started = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # reading a number waits for it
        rates.append(2 * size**3 / (time.perf_counter() - started))
    return max(rates)
