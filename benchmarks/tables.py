"""What `compare.py` writes: its measurements as CSV, tables of text and plots.

A row of the frames is one arm of a group at one length n, with the columns of `results.csv`.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from llp.atomic_files import write_whole
from llp.evaluation.colours import COLOURS, lighter

OURS = {"attention": "LLP", "stack": "LLP", "perceiver": "PerceiverAR", "step": "LLP"}
"""The groups that are timed, and the arm of each that the others are compared with."""
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
"""The colours of the arms that are no architecture of ours; their markers are squares."""
FITTED_FROM = 2048
"""The shortest length that the growth of the time is fitted to: below it, overhead matters."""


def write(rows: pd.DataFrame, folder: Path, group: str) -> None:
    """Write `results.csv`, `results.txt` with the same measurements as tables, and the plot of a group."""
    folder.mkdir(parents=True, exist_ok=True)
    timed = rows["group"] != "memory"
    parts = [times(rows[timed]), ratios(rows[timed]), growth(rows[timed])] if timed.any() else []
    text = "\n\n".join([*parts, *([] if timed.all() else [peak_memory(rows[~timed])])]) + "\n"
    for name, content in (("results.csv", rows.convert_dtypes().to_csv(index=False)), ("results.txt", text)):
        write_whole(folder / name, content)
    plot(group, rows[rows["group"] == group]).savefig(folder / f"{group}.png", dpi=110)


def times(rows: pd.DataFrame) -> str:
    """All times, a line each."""
    table = rows[["group", "name", "n"]].assign(
        **{
            "ms": 1e3 * rows["seconds"],
            "least": 1e3 * rows["least"],
            "most": 1e3 * rows["most"],
            "of matrix rate": rows["share_of_matrix_rate"].map("{:.0%}".format),
            "us/trained token": rows["us_per_trained_token"].map("{:.1f}".format),
        }
    )
    return as_text(table, "{:,.0f}")


def ratios(rows: pd.DataFrame) -> str:
    """The time of each arm divided by that of ours, length by length."""
    seconds = by_length(rows, "seconds")
    ours = seconds.reindex([(group, OURS[group]) for group, _ in seconds.index])
    ratio = (seconds / ours.to_numpy()).drop(index=OURS.items(), errors="ignore")
    return "Time relative to ours\n" + as_text(ratio.reset_index(), "{:.2f}")


def growth(rows: pd.DataFrame) -> str:
    """The exponent of the power law that the time of each arm follows."""
    found = [
        {"group": group, "name": name, f"growth exponent from {FITTED_FROM:,} on": fit[0]}
        for (group, name), arm in rows.groupby(["group", "name"], sort=False)
        if (fit := power_law(arm["n"], arm["seconds"])) is not None
    ]
    return as_text(pd.DataFrame(found), "{:.3f}")


def peak_memory(rows: pd.DataFrame) -> str:
    """Peak memory in GB, length by length."""
    return "Peak memory of a step, GB\n" + as_text((by_length(rows, "peak_bytes") / 1e9).reset_index(), "{:.2f}")


def by_length(rows: pd.DataFrame, column: str) -> pd.DataFrame:
    """One column with a row for each arm and a column for each length."""
    return rows.pivot_table(column, ["group", "name"], "n", sort=False).sort_index(axis=1)


def as_text(table: pd.DataFrame, number: str) -> str:
    """A table as text: names on the left, numbers in the given format, nothing where nothing was measured."""
    if table.empty:
        return "(not measured)"
    names = {name: f"{{:<{table[name].str.len().max()}}}".format for name in ("group", "name")}
    counts = {"n": "{:,}".format} if "n" in table else {}
    header = [f"{column:,}" if isinstance(column, int) else column for column in table.columns]
    table = table.set_axis(header, axis=1)
    return table.to_string(index=False, formatters=names | counts, float_format=number.format, na_rep="")


def power_law(n: pd.Series, measured: pd.Series) -> tuple[float, float] | None:
    """Exponent and factor of the power law from `FITTED_FROM` on, by least squares of logarithms, or None."""
    fitted = n >= FITTED_FROM
    if fitted.sum() < 2:
        return None
    exponent, intercept = np.polyfit(np.log(n[fitted]), np.log(measured[fitted]), 1)
    return float(exponent), float(np.exp(intercept))


def plot(group: str, rows: pd.DataFrame) -> Figure:
    """The time per trained token with its fitted growth, or the peak memory, against the length."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for name, arm in rows.groupby("name", sort=False):
        style = {"color": COLOURS.get(name, PEERS.get(name)), "marker": "o" if name in COLOURS else "s"}
        if group == "memory":
            axes.plot(arm["n"], arm["peak_bytes"] / 1e9, label=name, **style)
        else:
            _plot_times(axes, str(name), arm, style, is_ours=name == OURS[group])
    unit = "peak memory (GB)" if group == "memory" else "time per trained token (µs)"
    axes.set(xscale="log", yscale="log", xlabel="length n (tokens)", ylabel=unit, title=TITLES[group])
    axes.margins(y=0.12)  # room for the annotation
    axes.set_xticks(sorted(rows["n"].unique()))
    axes.get_xaxis().set_major_formatter("{x:,.0f}")
    axes.minorticks_off()
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 6)))  # a plot may span less than a decade
    axes.get_yaxis().set_major_formatter("{x:,.10g}")
    axes.grid(alpha=0.3)
    title = None if group == "memory" else f"time of a pass, fitted from n = {FITTED_FROM:,} on"
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5), title=title, title_fontsize="small")
    return figure


def _plot_times(axes: Axes, name: str, arm: pd.DataFrame, style: dict[str, str | None], is_ours: bool) -> None:
    n, us_per_token = arm["n"], arm["us_per_trained_token"]
    (dots,) = axes.plot(n, us_per_token, label=name, linestyle="none", **style)  # type: ignore[arg-type]
    if (fit := power_law(n, us_per_token)) is None:
        return
    exponent, factor = fit
    growth = f"n^{{{exponent + 1:.2f}}}"  # of a pass, whose time is that of a token times their number
    dots.set_label(f"{name}: ${growth}$")
    fitted = n[n >= FITTED_FROM]
    axes.plot(fitted, factor * fitted**exponent, color=dots.get_color(), linewidth=1)
    if is_ours and name == "LLP":
        end = fitted.iloc[-1], factor * fitted.iloc[-1] ** exponent
        offset = {"xytext": (0, -26), "textcoords": "offset points", "ha": "right", "color": dots.get_color()}
        axes.annotate(f"{name}: time grows as ${growth}$", end, **offset)
