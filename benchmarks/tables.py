"""What a comparison writes: a CSV file, the same figures as tables of text, and plots."""

import csv
import io
import math
import statistics
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from llp.evaluation.colours import COLOURS, lighter
from llp.evaluation.tables import aligned

OURS = {"attention": "LLP", "stack": "LLP", "perceiver": "PerceiverAR", "step": "LLP"}
"""The groups that are timed, and the one in each that the others are compared with."""
TITLES = {
    "attention": "Attention alone, forward and backward",
    "stack": "The stack of layers, forward and backward",
    "perceiver": "Perceiver AR's stack, forward and backward",
    "step": "A whole training step, with loss and optimizer",
    "memory": "Peak memory of a training step",
}
GROUPS = tuple(TITLES)
PEERS = {
    "published LLP": lighter(COLOURS["LLP"]),
    "local-attention": "#0c8599",
    "perceiver-ar-pytorch": lighter(COLOURS["PerceiverAR"]),
    "head": lighter(COLOURS["Transformer"]),
}
"""The colours of what is measured beside the architectures; it is drawn with square markers."""

Row = dict[str, Any]


def growth(points: dict[int, float]) -> tuple[float, float]:
    """Exponent and factor of the power law through (length, seconds), by least squares of logarithms."""
    xs, ys = [math.log(n) for n in points], [math.log(seconds) for seconds in points.values()]
    exponent, intercept = statistics.linear_regression(xs, ys)
    return exponent, math.exp(intercept)


def write(rows: list[Row], folder: Path) -> None:
    """Write `results.csv`, the same figures as tables of text, and the plots."""
    folder.mkdir(parents=True, exist_ok=True)
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    _replace(folder / "results.csv", stream.getvalue())
    tables = (time_table(rows), ratio_table(rows), growth_table(rows), memory_table(rows))
    _replace(folder / "results.txt", "\n\n".join("\n".join(table) for table in tables) + "\n")
    plot(rows, folder)


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all: it holds hours of measurements."""
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def read(path: Path) -> list[Row]:
    """The rows of an earlier run."""
    with path.open(newline="", encoding="utf-8") as stream:
        found = list(csv.DictReader(stream))
    kinds = {"group": str, "name": str, "n": int, "rounds": int, "peak_bytes": int}
    return [{key: kinds.get(key, float)(value) for key, value in row.items() if value} for row in found]


def timed(rows: list[Row], group: str) -> dict[str, dict[int, Row]]:
    """The rows of a group by name and length."""
    found: dict[str, dict[int, Row]] = {}
    for row in rows:
        if row["group"] == group:
            found.setdefault(row["name"], {})[row["n"]] = row
    return found


def time_table(rows: list[Row]) -> list[str]:
    """All times, as lines of text."""
    table = [["group", "name", "n", "ms", "least", "most", "of matrix rate", "us/trained token"]]
    for row in rows:
        if row["group"] != "memory":
            times = [f"{1e3 * row[key]:,.0f}" for key in ("seconds", "least", "most")]
            share = f"{100 * row['share_of_matrix_rate']:.0f} %"
            table.append(
                [row["group"], row["name"], f"{row['n']:,}", *times, share, f"{row['us_per_trained_token']:.1f}"]
            )
    return aligned(table, n_left=2)


def ratio_table(rows: list[Row]) -> list[str]:
    """The time of the others divided by ours, length by length."""
    ns = sorted({row["n"] for row in rows if row["group"] != "memory"})
    table = [["group", "times as long as", *(f"{n:,}" for n in ns)]]
    for group, ours in OURS.items():
        found = timed(rows, group)
        for name, points in found.items():
            if name != ours:
                ratios = [f"{points[n]['seconds'] / found[ours][n]['seconds']:.2f}" if n in points else "" for n in ns]
                table.append([group, f"{name} / {ours}", *ratios])
    return aligned(table, n_left=2)


def growth_table(rows: list[Row]) -> list[str]:
    """How the time grows with the length: the exponent of the power law fitted to it."""
    table = [["group", "name", "growth exponent from 2,048 on"]]
    for group in OURS:
        for name, points in timed(rows, group).items():
            seconds = {n: row["seconds"] for n, row in points.items() if n >= 2048}
            if len(seconds) > 1:
                table.append([group, name, f"{growth(seconds)[0]:.3f}"])
    return aligned(table, n_left=2)


def memory_table(rows: list[Row]) -> list[str]:
    """Peak memory, length by length."""
    found = timed(rows, "memory")
    ns = sorted({n for points in found.values() for n in points})
    table = [["peak memory of a step, GB", *(f"{n:,}" for n in ns)]]
    for name, points in found.items():
        table.append([name, *(f"{points[n]['peak_bytes'] / 1e9:.2f}" if n in points else "" for n in ns)])
    return aligned(table, n_left=1)


def plot(rows: list[Row], folder: Path) -> None:
    """One picture per group: time per trained token with the fitted growth, or peak memory."""
    for group in GROUPS:
        if found := timed(rows, group):
            figure = Figure(figsize=(9, 5), layout="constrained")
            axes = figure.subplots()
            for name, points in found.items():
                (_draw_memory if group == "memory" else _draw_times)(axes, name, points)
            axes.set(xscale="log", yscale="log", xlabel="length n (tokens)", title=TITLES[group])
            axes.set_ylabel("peak memory (GB)" if group == "memory" else "time per trained token (µs)")
            axes.margins(y=0.12)  # room for the annotation
            if OURS.get(group) == "LLP":
                _annotate_growth(axes, "LLP", found)
            axes.set_xticks(sorted({n for points in found.values() for n in points}))
            axes.get_xaxis().set_major_formatter("{x:,.0f}")
            axes.minorticks_off()
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 6)))  # a picture may span less than a decade
            axes.get_yaxis().set_major_formatter("{x:,.10g}")
            axes.grid(alpha=0.3)
            title = None if group == "memory" else "time of a pass, fitted from n = 2,048 on"
            axes.legend(
                fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5), title=title, title_fontsize="small"
            )
            figure.savefig(folder / f"{group}.png", dpi=110)


def _style(name: str) -> dict[str, str]:
    """Colour and marker of a contestant; peers are drawn as squares."""
    if name in COLOURS:
        return {"color": COLOURS[name], "marker": "o"}
    return {"color": PEERS[name], "marker": "s"}


def _draw_memory(axes: Any, name: str, points: dict[int, Row]) -> None:
    axes.plot(list(points), [row["peak_bytes"] / 1e9 for row in points.values()], label=name, **_style(name))


def _growth_per_token(points: dict[int, Row]) -> tuple[float, float, list[int]] | None:
    """Exponent and factor of the time per trained token, and the lengths that they are fitted to, if there are two."""
    fitted = {n: row["us_per_trained_token"] for n, row in points.items() if n >= 2048}
    return (*growth(fitted), list(fitted)) if len(fitted) > 1 else None


def _annotate_growth(axes: Any, name: str, found: dict[str, dict[int, Row]]) -> None:
    """Say what the slope of our line is."""
    if (fit := _growth_per_token(found[name])) is not None:
        exponent, factor, ns = fit
        text = f"{name}: time grows as $n^{{{exponent + 1:.2f}}}$"
        place = (ns[-1], factor * ns[-1] ** exponent)
        offset = {"xytext": (0, -26), "textcoords": "offset points", "ha": "right", "color": COLOURS[name]}
        axes.annotate(text, place, **offset)


def _draw_times(axes: Any, name: str, points: dict[int, Row]) -> None:
    times = [row["us_per_trained_token"] for row in points.values()]
    (dots,) = axes.plot(list(points), times, label=name, linestyle="none", **_style(name))
    if (fit := _growth_per_token(points)) is not None:
        exponent, factor, ns = fit
        # The time of a pass is that of a token times their number.
        dots.set_label(f"{name}: $n^{{{exponent + 1:.2f}}}$")
        axes.plot(ns, [factor * n**exponent for n in ns], color=dots.get_color(), linewidth=1)
