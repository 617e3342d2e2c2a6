"""What the benchmarks share: runs timed in turn, peak memory, and rows that become a table and plots.

A row is one measurement: its label, which is its `part`, its `arm` and sizes such as the length `n`, then the results.
"""

import json
import math
import multiprocessing
import random
import statistics
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from torch import Tensor

from llp.atomic_files import write_whole
from llp.decoder.decoder import TextDecoder
from llp.evaluation.colours import COLOURS, lighter

Run = Callable[[], object]
Row = dict[str, Any]
Arm = TypeVar("Arm", bound=Hashable)
T = TypeVar("T")

LABEL = ("part", "arm", "model", "dtype", "head_dim", "n", "queries", "batch")
FITTED_FROM = 2048
"""The shortest length that the growth of the time is fitted to: below it, overhead matters."""
ARM_COLOURS = {
    **COLOURS,
    "published LLP": lighter(COLOURS["LLP"]),
    "local-attention": "#0c8599",
    "perceiver-ar-pytorch": lighter(COLOURS["PerceiverAR"]),
    "head": lighter(COLOURS["Transformer"]),
    "LLP in pieces": COLOURS["LLP"],
    "LLP in one pass": lighter(COLOURS["LLP"]),
    "dense": COLOURS["Transformer"],
}


# Timing


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


# Results


def label(row: Row) -> tuple[Any, ...]:
    """What a row is a measurement of."""
    return tuple(row.get(name) for name in LABEL)


def read(folder: Path) -> list[Row]:
    """The rows of a folder."""
    path = folder / "rows.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def add(folder: Path, new: Iterable[Row]) -> list[Row]:
    """Write rows to `rows.jsonl` in a folder, in place of those with the same label; returns all rows."""
    rows = {label(row): row for row in [*read(folder), *new]}
    write_whole(folder / "rows.jsonl", "".join(json.dumps(row) + "\n" for row in rows.values()))
    return list(rows.values())


class Panel(NamedTuple):
    """A plot of one column of a part against the length."""

    part: str
    column: str
    unit: str
    title: str


def save(folder: Path, new: list[Row], plots: Mapping[str, Sequence[Panel]]) -> None:
    """Add rows to a folder, write `results.txt` and the plots, by file name, anew, and print the new rows."""
    rows = add(folder, new)
    write_whole(folder / "results.txt", report(rows))
    for name, panels in plots.items():
        if measured := [panel for panel in panels if any(row["part"] == panel.part for row in rows)]:
            plot(rows, measured).savefig(folder / name, dpi=110)
    print(report(new), flush=True)


def report(rows: Sequence[Row]) -> str:
    """A table for each part; where an arm has one time for each length, also relative times and their growth."""
    text, frame = [], pd.DataFrame(rows)
    frame = frame.reindex(columns=list(dict.fromkeys([*LABEL, *frame.columns])))
    for part, found in frame.groupby("part", sort=False):
        table = found.drop(columns="part").dropna(axis="columns", how="all").sort_values("n", kind="stable")
        text.append(f"{part}\n{as_text(table)}")
        if "seconds" in table and not table.duplicated(["arm", "n"]).any():
            text.append(as_text(relative(found)))
    return "\n\n".join(text) + "\n"


def relative(rows: pd.DataFrame) -> pd.DataFrame:
    """The time of each arm divided by LLP's or the first one's, length by length, and the exponent of its growth."""
    seconds = rows.pivot_table("seconds", "arm", "n", sort=False).sort_index(axis=1)
    ours = "LLP" if "LLP" in seconds.index else seconds.index[0]
    table = (seconds / seconds.loc[ours]).rename(columns="{:,}".format)
    table["growth"] = [power_law(times.dropna()) for _, times in seconds.iterrows()]
    return table.rename_axis(f"time / {ours}").reset_index()


def power_law(measured: pd.Series) -> float:
    """The exponent of growth with the index from `FITTED_FROM` on, fitted to logarithms; NaN for one point."""
    fitted = measured[measured.index >= FITTED_FROM]
    return float(np.polyfit(np.log(fitted.index), np.log(fitted), 1)[0]) if len(fitted) > 1 else math.nan


def as_text(table: pd.DataFrame) -> str:
    """A table as text: arms on the left, six digits, nothing where nothing was measured."""
    arm = table.columns[0]
    formats = {arm: f"{{:<{table[arm].str.len().max()}}}".format, "n": "{:,}".format}
    return table.to_string(index=False, formatters=formats, float_format=number, na_rep="")


def number(x: float) -> str:
    """Six digits, or a whole number."""
    return f"{x:,.0f}" if abs(x) >= 1000 else f"{x:.6g}"


def plot(rows: Sequence[Row], panels: Sequence[Panel]) -> Figure:
    """Panels side by side with logarithmic axes and a line for each arm; the legends state how times grow."""
    frame = pd.DataFrame(rows)
    figure = Figure(figsize=(2 + 7 * len(panels), 5), layout="constrained")
    for panel, axes in zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True):
        of_part = frame[frame["part"] == panel.part]
        is_time = not panel.column.startswith("peak")
        for arm, found in of_part.groupby("arm", sort=False):
            of_arm = found.sort_values("n")
            exponent = power_law(of_arm.set_index("n")["seconds"]) if is_time else math.nan
            name = arm if math.isnan(exponent) else f"{arm}: $n^{{{exponent:.2f}}}$"
            marker = "o" if arm in COLOURS else "s"
            axes.plot(of_arm["n"], of_arm[panel.column], marker=marker, color=ARM_COLOURS[str(arm)], label=name)
        lengths = sorted(of_part["n"].unique())
        axes.set(xscale="log", yscale="log", xlabel="length n (tokens)", ylabel=panel.unit, title=panel.title)
        axes.set_xticks(lengths, [f"{n:,}" for n in lengths])
        axes.minorticks_off()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 6)))  # a plot may span less than a decade
        axes.yaxis.set_major_formatter("{x:,.10g}")
        axes.grid(alpha=0.3)
        title = f"seconds of a run, fitted from n = {FITTED_FROM:,} on" if is_time else None
        axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5), title=title, title_fontsize="small")
    return figure
