"""What each unit of `gpu.py` shares: rows that are written as they come, failures that stay alone, timing in turn."""

import gc
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.throughput import get_available_flops

BROKEN = 3
"""Exit status of a process whose device answers no more, which another process then replaces."""


class Record:
    """The log of one unit: a line for each figure, and one for each thing that is begun.

    Args:
        log: The file.
        labels: What all rows of the unit have in common.
        expected_s: How long the unit is expected to take.
        failed: Names that an earlier process has not survived, which are left out.
    """

    def __init__(self, log: Path, labels: dict[str, Any], expected_s: float, failed: set[str]) -> None:
        self.log, self.labels, self.expected_s, self.failed = log, labels, expected_s, failed

    def row(self, name: str, **figures: Any) -> None:
        """Write a figure down, and show it."""
        self.write({**self.labels, "name": name, "status": "ok", **figures})

    def attempt(self, name: str, run: Callable[[], Any]) -> Any:
        """What `run` returns; None, and a row that says why, if it fails or has not been survived before."""
        if name in self.failed:
            return None
        at = {"event": "started", "time": time.time(), "expected_s": self.expected_s}
        self.write({**at, **self.labels, "name": name})
        try:
            return run()
        except Exception as error:
            self.write({**self.labels, "name": name, "status": "failed", "why": in_a_line(error)})
        self.failed.add(name)
        recover()
        return None

    def write(self, entry: dict[str, Any]) -> None:
        with self.log.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(entry) + "\n")
        if "event" not in entry:
            hidden = {*self.labels, "name", "losses"} - {"part", "unit"}
            print(*(f"{key}={value}" for key, value in entry.items() if key not in hidden), entry["name"], flush=True)


def in_a_line(error: Exception) -> str:
    """An error's type and the beginning of its message."""
    (first, *_) = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {first[:160]}"


def recover() -> None:
    """Free what a failure has left; a device that answers no more ends the process."""
    gc.collect()
    torch._dynamo.reset()
    try:
        synchronize()
        torch.cuda.empty_cache()
    except RuntimeError:
        os._exit(BROKEN)


def synchronize() -> None:
    """Wait until the device has done all that it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def seconds(run: Callable[[], Any], times: int = 1) -> float:
    """How long a run takes, on average over some that follow each other."""
    synchronize()
    started = time.perf_counter()
    for _ in range(times):
        run()
    synchronize()
    return (time.perf_counter() - started) / times


def in_turn(
    record: Record, contestants: dict[str, Callable[[], Any]], rounds: int, at_least_s: float
) -> dict[str, list[float]]:
    """Seconds of each contestant that works, which take turns, for some rounds; a timing takes `at_least_s` or more.

    A contestant runs twice before: what is compiled is compiled then.
    """
    repeats: dict[str, int] = {}
    for name, run in contestants.items():
        once = record.attempt(name, lambda run=run: (seconds(run), seconds(run))[1])
        if once is not None:
            repeats[name] = max(1, round(at_least_s / once))
    times: dict[str, list[float]] = {name: [] for name in repeats}
    order = list(repeats)
    for number in range(rounds):
        turn = number % max(1, len(order))  # nobody always comes after the same one
        for name in order[turn:] + order[:turn]:
            once = record.attempt(name, lambda name=name: seconds(contestants[name], repeats[name]))
            if once is not None:
                times[name].append(once)
    return {name: found for name, found in times.items() if len(found) == rounds}


def matrix_product(device: torch.device, dtype: torch.dtype, size: int) -> Callable[[], Any]:
    """A product of square matrices: 2 `size`^3 FLOPs."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return lambda: a @ b


def timed(
    record: Record,
    device: torch.device,
    dtype: torch.dtype,
    contestants: dict[str, tuple[Callable[[], Any], float]],
    rounds: int,
    matrix_size: int,
    at_least_s: float,
) -> dict[str, dict[str, Any]]:
    """Figures of contestants, each a run and its useful FLOPs, that take turns with a product of matrices."""
    matrix = "matrix product"
    runs = {matrix: matrix_product(device, dtype, matrix_size)} | {name: run for name, (run, _) in contestants.items()}
    times = in_turn(record, runs, rounds, at_least_s)
    rate = 2 * matrix_size**3 / statistics.median(times.pop(matrix))
    nominal = get_available_flops(device, dtype) if device.type == "cuda" else None
    figures = {}
    for name, found in times.items():
        flops = contestants[name][1] / statistics.median(found)
        figures[name] = {
            "dtype": str(dtype).removeprefix("torch."),
            "ms": 1e3 * statistics.median(found),
            "least_ms": 1e3 * min(found),
            "most_ms": 1e3 * max(found),
            "tflops": flops / 1e12,
            "matrix_tflops": rate / 1e12,
            "share_of_matrix_rate": flops / rate,
            "nominal_tflops": None if nominal is None else nominal / 1e12,
            "share_of_nominal": None if nominal is None else flops / nominal,
        }
    return figures


@contextmanager
def peak_memory(device: torch.device) -> Iterator[dict[str, float]]:
    """Bytes in use at the peak, under `peak_gb` when the block has ended: on the device, or by this process."""
    found: dict[str, float] = {}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    yield found
    if device.type == "cuda":
        synchronize()
        found["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
    else:
        lines = Path("/proc/self/status").read_text().splitlines()
        (line,) = (line for line in lines if line.startswith("VmHWM:"))
        found["peak_gb"] = 1024 * int(line.split()[1]) / 1e9
