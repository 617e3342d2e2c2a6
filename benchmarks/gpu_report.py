"""What `gpu.py` leaves beside its rows: `report.md`, a table for each part, and pictures where there is an axis."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from llp.atomic_files import whole_file

Row = dict[str, Any]

COLUMNS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "dtype": ("type", str),
    "holds": ("holds", lambda value: "yes" if value else "**NO**"),
    "error_output": ("error of output", "{:.1e}".format),
    "error_gradients": ("of gradients", "{:.1e}".format),
    "parameters": ("parameters", "{:,}".format),
    "ms": ("ms", "{:,.3f}".format),
    "tokens_per_s": ("tokens/s", "{:,.0f}".format),
    "tflops": ("TFLOP/s", "{:,.1f}".format),
    "matrix_tflops": ("matrix product's", "{:,.1f}".format),
    "share_of_matrix_rate": ("of matrix rate", "{:.1%}".format),
    "share_of_nominal": ("of nominal peak", "{:.1%}".format),
    "share_of_reading_rate": ("of reading rate", "{:.1%}".format),
    "peak_gb": ("peak GB", "{:,.2f}".format),
    "share_of_step": ("of the step", "{:.1%}".format),
    "calls": ("calls", str),
    "steps": ("steps", str),
    "mean_of_last_losses": ("mean of the last 25 losses", "{:.4f}".format),
}
"""The figures that tables show: their titles and formats."""


def write(entries: list[Row], folder: Path) -> int:
    """Write report and pictures; returns how many paths don't hold."""
    rows = latest(entries)
    wrong = sum(row.get("holds") is False for row in rows)
    pictures = {
        f"{name}.png": figure
        for name, draw in (("attention", _attention), ("length", _lengths), ("curves", _curves))
        if (figure := draw(rows)) is not None
    }
    for name, figure in pictures.items():
        figure.savefig(folder / name, dpi=110)
    lines = ["# Figures of one device", "", *_machines(rows), ""]
    if wrong:
        lines += [f'**{wrong} paths do not compute what they should: see the part "correctness".**', ""]
    for part in dict.fromkeys(row["part"] for row in rows):
        lines += [f"## {part.capitalize()}", "", *table([row for row in rows if row["part"] == part]), ""]
        lines += [f"![{part}]({part}.png)", ""] if f"{part}.png" in pictures else []
    with whole_file(folder / "report.md") as path:
        path.write_text("\n".join(lines), encoding="utf-8")
    print(f"\n{folder / 'report.md'}" + (f": {wrong} paths are WRONG" if wrong else ""))
    return wrong


def latest(entries: list[Row]) -> list[Row]:
    """The last row of each contestant; that a unit was skipped is left out once it was measured."""
    found: dict[tuple[str, str, str], Row] = {}
    for entry in entries:
        if "event" not in entry:
            found[entry["part"], entry["unit"], entry["name"]] = entry
    finished = {(entry["part"], entry["unit"]) for entry in entries if entry.get("event") == "finished"}
    return [row for row in found.values() if row["status"] != "skipped" or (row["part"], row["unit"]) not in finished]


def _machines(rows: list[Row]) -> list[str]:
    places = {(row["device"], row["torch"], row["cuda"], row["cudnn"]) for row in rows}
    return [
        f"{device}, torch {torch}, CUDA {cuda}, cuDNN {cudnn}" for device, torch, cuda, cudnn in sorted(places, key=str)
    ]


def table(rows: list[Row]) -> list[str]:
    """A table in Markdown: the figures that any of the rows has; what failed or was skipped says why."""
    shown = [name for name in COLUMNS if any(row.get(name) is not None for row in rows)]
    lines = [["what", "by", *(COLUMNS[name][0] for name in shown), "remark"]]
    lines += [["---"] * len(lines[0])]
    for row in rows:
        cells = ["" if row.get(name) is None else COLUMNS[name][1](row[name]) for name in shown]
        remark = row.get("why", "") if row["status"] == "ok" else f"{row['status']}: {row['why']}"
        lines.append([row["unit"], row["name"], *cells, remark])
    return ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]


def _series(rows: list[Row], part: str, key: Callable[[Row], str | None], y: str) -> dict[str, dict[int, float]]:
    """Figures by length, a series for each key."""
    found: dict[str, dict[int, float]] = {}
    for row in rows:
        if row["part"] == part and row.get(y) is not None and (name := key(row)) is not None:
            found.setdefault(name, {})[row["n"]] = row[y]
    return found


def _attention(rows: list[Row]) -> Figure | None:
    """Time of attention alone per token."""

    def key(row: Row) -> str | None:
        return (
            f"{row['name']}, width {row['head_dim']}" if row["batch"] == 1 and "segments" not in row["unit"] else None
        )

    return _picture(
        _series(rows, "attention", key, "us_per_token"), "Attention alone, forward and backward", "µs a token"
    )


def _lengths(rows: list[Row]) -> Figure | None:
    """Peak memory of a step."""
    found = _series(rows, "length", lambda row: row["name"], "peak_gb")
    return _picture(found, "A training step of one text, 130 million parameters", "peak memory (GB)")


def _picture(found: dict[str, dict[int, float]], title: str, label: str) -> Figure | None:
    if not found:
        return None
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for name, points in found.items():
        axes.plot(list(points), list(points.values()), marker="o", label=name)
    axes.set(xscale="log", yscale="log", xlabel="length n (tokens)", ylabel=label, title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _curves(rows: list[Row]) -> Figure | None:
    """Loss by step in each precision."""
    curves = {row["name"]: row["losses"] for row in rows if row["part"] == "curves" and "losses" in row}
    if not curves:
        return None
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for name, losses in curves.items():
        axes.plot(range(1, len(losses) + 1), losses, label=name, linewidth=1)
    axes.set(xlabel="step", ylabel="loss (nats a token)", title="The quickstart's training in two precisions")
    axes.legend()
    return figure
