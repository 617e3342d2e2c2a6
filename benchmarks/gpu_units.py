"""What `gpu.py` measures, in the order of importance, and the process that does it."""

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

import gpu_attention
import gpu_models
from gpu import WHOLE, entries
from gpu_record import Record, recover
from gpu_sizes import Sizes, sizes_for


class Unit(NamedTuple):
    """A part of a part that is measured at once, or skipped."""

    part: str
    name: str
    expected_s: float
    """How long it may take on an H100, by reckoning: it has never been measured."""
    run: Callable[[Record], None]


def units(sizes: Sizes, device: torch.device, folder: Path) -> list[Unit]:
    """All of them. What takes a compiler comes where it is owed, and what is nice to have at the end."""
    a, m, of = gpu_attention, gpu_models, {"sizes": sizes, "device": device}
    found = [
        Unit(
            "correctness",
            f"{str(dtype).removeprefix('torch.')}, head width {width}",
            10,
            partial(a.correctness, **of, dtype=dtype, head_dim=width),
        )
        for dtype in (torch.bfloat16, torch.float32)
        for width in sizes.checked_head_dims
    ]
    found.append(Unit("matrix rate", "a layer's maps", 10, partial(m.matrix_rates, **of)))
    found.append(Unit("profile", "eager", 15, partial(m.step_profile, **of, model="no dropout", compiled=False)))
    if sizes.compiles:
        found.append(Unit("profile", "compiled", 60, partial(m.step_profile, **of, model="no dropout", compiled=True)))
        found.append(Unit("correctness", "compiled", 60, partial(a.compiled_correctness, **of)))
    of_speed = partial(a.speed, **of, segment_len=sizes.segment_len)
    cases = [(1, n, width) for n in sizes.attention_lens for width in sizes.head_dims]
    cases += [(*sizes.batched, width) for width in sizes.head_dims]
    for batch, n, width in cases:
        run = partial(of_speed, batch=batch, n=n, head_dim=width)
        found.append(Unit("attention", _case(batch, n, width), 12, run))
    for name in ("paper", "no dropout", "d 1,024", "d 2,048"):
        if name in sizes.models:
            found.append(Unit("step", name, 20, partial(m.step_speed, **of, model=name)))
    for n in sizes.lengths:
        found.append(Unit("length", f"n {n:,}", 8, partial(m.step_by_length, **of, n=n)))
    for place in sizes.places:
        found.append(Unit("generation", f"place {place:,}", 12, partial(m.generation, **of, place=place)))
    for name, checkpointing in (("all activations", False), ("activation checkpointing", True)):
        found.append(Unit("longest", name, 25, partial(m.longest, **of, checkpointing=checkpointing)))
    for precision in ("bf16-mixed", "32-true"):
        run = partial(m.curve, **of, precision=precision, folder=folder / "cache")
        found.append(Unit("curves", precision, 30, run))
    return found + (_optional(sizes, of, of_speed) if sizes.compiles else [])


def _optional(sizes: Sizes, of: dict[str, Any], of_speed: Callable[..., None]) -> list[Unit]:
    """What needs a compiler for each figure, and longer segments."""
    found = []
    for name in ("d 1,024", "no dropout", "d 2,048", "paper"):
        for kind in ("LLP", "dense"):
            run = partial(gpu_models.step_speed, **of, model=name, compiled=kind)
            found.append(Unit("step", f"{name}, {kind} compiled", 60, run))
    for n in sizes.attention_lens:
        for width in sizes.head_dims:
            run = partial(of_speed, batch=1, n=n, head_dim=width, flex=True)
            found.append(Unit("attention", f"FlexAttention, {_case(1, n, width)}", 40, run))
    for n in sizes.attention_lens:
        run = partial(of_speed, segment_len=sizes.long_segment_len, batch=1, n=n, head_dim=sizes.head_dims[-1])
        found.append(Unit("attention", f"segments of {sizes.long_segment_len:,}, n {n:,}", 12, run))
    return found


def _case(batch: int, n: int, width: int) -> str:
    return f"batch {batch}, n {n:,}, head width {width}"


def measure(options: argparse.Namespace, log: Path) -> None:
    """Measure what has not been measured yet, as long as there is time."""
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device = cuda: torch finds no CUDA device here; --device cpu shows the small form")
    torch.manual_seed(0)
    before = entries(log)
    finished = {(entry["part"], entry["unit"]) for entry in before if entry.get("event") == "finished"}
    for unit in units(sizes_for(device), device, options.out):
        where = unit.part, unit.name
        if where in finished or (options.parts is not None and unit.part not in options.parts):
            continue
        labels = {"part": unit.part, "unit": unit.name, **machine(device)}
        failed = {entry["name"] for entry in before if entry.get("status") == "failed" and _place(entry) == where}
        record = Record(log, labels, unit.expected_s, failed)
        left = options.deadline - time.time()
        if left < (unit.expected_s if device.type == "cuda" else 0):
            why = f"{max(0.0, left):.0f} s were left, and it was expected to take {unit.expected_s:.0f}"
            record.write({**labels, "name": WHOLE, "status": "skipped", "why": why})
            continue
        record.attempt(WHOLE, partial(unit.run, record))
        recover()
        record.write({"event": "finished", "part": unit.part, "unit": unit.name})


def _place(entry: dict[str, Any]) -> tuple[str, str]:
    return entry["part"], entry["unit"]


def machine(device: torch.device) -> dict[str, Any]:
    """What all rows say of where they were measured."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    cudnn = torch.backends.cudnn.version() if device.type == "cuda" else None
    return {"device": name, "torch": torch.__version__, "cuda": torch.version.cuda, "cudnn": cudnn}
