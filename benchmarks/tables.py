"""Measurements as rows of a file, which become a table and plots.

A row is one measurement: its label, which is its `part`, its `arm` and sizes such as the length `n`, then the results.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from llp.atomic_files import write_whole
from llp.evaluation.colours import COLOURS, lighter
from measuring import Row

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
