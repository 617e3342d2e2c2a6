"""What a training window costs, and what a device can compute at most: both sides of the utilisation (MFU)."""

from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import torch
from lightning.fabric.utilities.throughput import get_available_flops
from torch.utils.benchmark import Timer

from llp.decoder.decoder import TextDecoder
from llp.training_module import TrainingModule

if TYPE_CHECKING:
    from datamodules.base import LanguageDataModule


class TrainingWindow(NamedTuple):
    """Numbers of tokens of one training window.

    Attributes:
        burn_in: Tokens read before the window, without a loss.
        length: n, the tokens of the window itself.
        n_trained: Positions with a loss: the labels, or all positions at which the architecture can have one.
        has_labels: Whether the loss is at labels, which may be anywhere in the window.
    """

    burn_in: int
    length: int
    n_trained: int
    has_labels: bool

    @property
    def n_read(self) -> int:
        return self.burn_in + self.length

    @property
    def n_last(self) -> int | None:
        """The layers need to compute only this many of the last positions, or all of them if None."""
        return None if self.has_labels else self.length

    def flops(self, decoder: TextDecoder) -> int:
        """FLOPs of a training step on one window: the backward pass takes twice as many as the forward pass."""
        return 3 * decoder.flops(self.n_read, self.n_trained, self.n_last)


def training_window(model: TrainingModule, data: "LanguageDataModule") -> TrainingWindow:
    """The training window that a data module gives to a model whose decoder is built."""
    burn_in, n_labels = model.geometry.burn_in_len(data.burn_in), data.labels_per_window
    n_trained = n_labels or min(data.window_len, model.geometry.positions_out(burn_in + data.window_len))
    return TrainingWindow(burn_in, data.window_len, n_trained, n_labels is not None)


def compute_dtype(precision: str) -> torch.dtype:
    """The type of matrix products under one of Lightning's precisions (`bf16-mixed`, `32-true`, ...)."""
    names = {"bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64}
    return names.get(precision.partition("-")[0], torch.float32)


@cache
def peak_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s at most: the manufacturer's figure if Lightning knows it, otherwise the measured rate of products."""
    known = get_available_flops(device, dtype) if device.type == "cuda" else None
    return matrix_rate(device, dtype) if known is None else float(known)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Measured rate of products of square matrices in FLOP/s.

    On a CPU one thread is measured and multiplied by their number: on a busy machine, threads that wait for one another
    would appear a hundred times slower than they are. A product may be delayed but is never early, so the fastest one
    is the closest to the peak.
    """
    n_threads, size = (torch.get_num_threads(), 512) if device.type == "cpu" else (1, 8192)
    matrix = torch.ones(size, size, device=device, dtype=dtype)
    timer = Timer("matrix @ matrix", globals={"matrix": matrix}, num_threads=1)
    return n_threads * 2 * size**3 / min(timer.blocked_autorange(min_run_time=0.3).times)
