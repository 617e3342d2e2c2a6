"""The report of `attention_cut.py`, out of its records: tables, and a plot beside each that has an axis."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy import stats

from llp.atomic_files import whole_file, write_whole
from llp.comparison.statistics import holm

Row = dict[str, Any]
BIN = 512
"""Positions in a bin of the loss by position."""
SETTLED = 1024
"""From this position on the loss by offset and by distance is taken."""
DISTANCES = [2**k for k in range(5, 14)]
"""Bounds of the bins of distance, in tokens, between a word and its last occurrence before."""
POOLED = {"new": slice(0, 1), "< 256": slice(1, 5), "256 to 2,047": slice(5, 8), "2,048 to 8,191": slice(8, 10)}
"""The bins of distance for which there are intervals. The first bin is for new words."""


def write(spec: Row, folder: Path) -> None:
    """Write `report.md` and its plots into the folder of the records."""
    lines = (folder / "records.jsonl").read_text(encoding="utf-8").splitlines()
    records = pd.DataFrame(map(json.loads, lines)).sort_values(["part", "document", "arm"], ignore_index=True)
    main, long = (records[records["part"] == part] for part in ("main", "long"))
    arms = [arm for arm in spec["arms"] if arm in set(main["arm"])]
    losses = table_of(main, arms)
    complete = [arm for arm in arms if losses[arm].notna().all()]  # the curves are over the same documents
    parts = [
        "# What a pretrained model loses when its attention is cut",
        spec["question"].strip(),
        f"{spec['model']}, untrained for any pattern; the first {spec['tokens']:,} tokens of up to "
        f"{len(spec['documents'])} documents, each token once. Losses are in nats per token; intervals are 95 %, "
        "paired over documents. A difference is over the documents that both arms have read.",
        "## Arms\n\n" + arms_table(losses),
        "## Contrasts that were named before the runs\n\n" + contrasts_table(contrasts(spec, losses, long)),
        "## Exploratory contrasts\n\n" + exploratory_table(spec["exploratory"], losses),
        offsets(main, complete, folder),
        distances(main, complete, folder),
        positions(main, long, folder),
    ]
    write_whole(folder / "report.md", "\n\n".join(part for part in parts if part) + "\n")


def table_of(records: pd.DataFrame, arms: list[str]) -> pd.DataFrame:
    """The loss of each arm (columns) on each document (rows); NaN where it has not been read."""
    losses = records.assign(loss=records["nats"] / records["tokens"])
    return losses.pivot_table("loss", "document", "arm")[arms]


def arms_table(losses: pd.DataFrame) -> str:
    """Each arm's mean loss, and its difference to dense attention: on all documents, on books, and on articles."""
    rows = [
        "| arm | documents | nats per token | minus dense | interval | books | articles |",
        "| --- | ---: | ---: | ---: | --- | ---: | ---: |",
    ]
    is_book = losses.index.str.startswith("pg19/")
    for arm in losses:
        gaps = losses[arm] - losses["dense"]
        mean, low, high, _ = difference(gaps)
        kinds = [f"{gaps[is_kind].mean():+.4f}" for is_kind in (is_book, ~is_book)]
        cells = [str(arm), str(losses[arm].count()), f"{losses[arm].mean():.4f}"]
        cells += [""] * 4 if arm == "dense" else [f"{mean:+.4f}", interval(low, high), *kinds]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def difference(gaps: pd.Series) -> tuple[float, float, float, float]:
    """Mean of a difference over the documents that have one, its 95 % interval by Student's t, and the p value."""
    gaps = gaps.dropna()
    if len(gaps) < 2 or not gaps.any():
        return float(gaps.mean()), -np.inf, np.inf, 1.0
    test = stats.ttest_1samp(gaps, 0)
    bounds = test.confidence_interval(0.95)
    return float(gaps.mean()), float(bounds.low), float(bounds.high), float(test.pvalue)


def interval(low: float, high: float) -> str:
    """An interval as a table has it; nothing for a single document."""
    return f"{low:+.4f} .. {high:+.4f}" if np.isfinite(low) else ""


def contrasts(spec: Row, losses: pd.DataFrame, long: pd.DataFrame) -> dict[tuple[str, str, str], tuple[float, ...]]:
    """Every contrast that was named: where, first and second arm."""
    found = {}
    for first, second in spec["contrasts"]:
        if {first, second} <= set(losses):
            found[f"the first {spec['tokens']:,}", first, second] = difference(losses[first] - losses[second])
    beyond = long.assign(
        nats=[sum(row[spec["tokens"] // BIN :]) for row in long["by_position"]], tokens=long["tokens"] - spec["tokens"]
    )
    for first, second in spec["long"]["contrasts"]:
        if {first, second} <= set(beyond["arm"]):
            both = table_of(beyond, [first, second])
            found[f"beyond {spec['tokens']:,}", first, second] = difference(both[first] - both[second])
    return found


def contrasts_table(found: dict[tuple[str, str, str], tuple[float, ...]]) -> str:
    """Difference, interval and Holm's p value of each contrast."""
    corrected = dict(zip(found, holm([values[3] for values in found.values()]), strict=True))
    rows = [
        "| tokens | first | second | first - second | interval | p, Holm |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for key, (mean, low, high, _) in found.items():
        rows.append(f"| {' | '.join(key)} | {mean:+.4f} | {interval(low, high)} | {corrected[key]:.2g} |")
    return "\n".join(rows)


def exploratory_table(pairs: list[tuple[str, str]], losses: pd.DataFrame) -> str:
    """Difference and interval of pairs that were named after the runs."""
    rows = ["| first | second | first - second | interval |", "| --- | --- | --- | --- |"]
    for first, second in pairs:
        mean, low, high, _ = difference(losses[first] - losses[second])
        rows.append(f"| {first} | {second} | {mean:+.4f} | {interval(low, high)} |")
    return "\n".join(rows)


def offsets(main: pd.DataFrame, arms: list[str], folder: Path) -> str:
    """The loss by the offset in a segment, minus dense attention's at the same tokens."""
    gaps = {}
    for arm in arms:
        if arm in ("llp_64", "llp_128", "llp_256", "llp_512", "blocks_384", "blocks_768"):
            gaps[arm] = gap_to_dense(main, arm, arm.split("_")[1])  # (documents, 16)
    figure, axes = plot("offset in the segment, sixteenths", "nats per token minus dense")
    for arm, gap in gaps.items():
        axes.plot(range(1, 17), gap.mean(axis=0), marker="o", label=arm)
    axes.legend(fontsize="small")
    save(figure, folder / "offsets.png")
    rows = ["| arm | first quarter | second | third | last |", "| --- | --- | --- | --- | --- |"]
    for arm, gap in gaps.items():
        quarters = gap.reshape(len(gap), 4, 4).mean(axis=2).T
        rows.append(f"| {arm} | {' | '.join(map(mean_and_interval, quarters))} |")
    text = "The first token of a segment of m sees m earlier ones, its last 2 m - 1; in blocks they see 0 and m - 1."
    title = f"## Loss by the offset in a segment, minus dense (from position {SETTLED:,} on)"
    return f"{title}\n\n{text}\n\n" + "\n".join(rows) + "\n\n![Loss by the offset in a segment](offsets.png)"


def gap_to_dense(records: pd.DataFrame, arm: str, length: str) -> np.ndarray:
    """The loss by offset in segments of a length, minus dense attention's: a row for each document."""
    own, dense = (
        np.array([row[length] for row in records.loc[records["arm"] == one, "by_offset"]]) for one in (arm, "dense")
    )
    return own - dense


def mean_and_interval(gaps: np.ndarray) -> str:
    """The mean over documents and its 95 % interval."""
    mean, low, high, _ = difference(pd.Series(gaps))
    return f"{mean:+.3f} ({low:+.2f} .. {high:+.2f})"


def distances(main: pd.DataFrame, arms: list[str], folder: Path) -> str:
    """The loss of words by the distance to their last occurrence, minus dense attention's on the same words."""
    bounds = ["new", *(f"< {bound:,}" for bound in DISTANCES), f"≥ {DISTANCES[-1]:,}"]
    figure, axes = plot("distance to the word's last occurrence, tokens", "nats per word minus dense")
    rows = [f"| arm | {' | '.join(bounds)} |", "| --- |" + " --- |" * len(bounds)]
    pooled = [f"| arm | {' | '.join(POOLED)} |", "| --- |" + " --- |" * len(POOLED)]
    dense, words = by_word(main, "dense")
    for arm in arms:
        if arm in ("llp_64", "llp_128", "llp_256", "llp_512", "window_384", "blocks_768", "shifted_768"):
            extra = by_word(main, arm)[0] - dense  # (documents, bins)
            gap = extra.sum(axis=0) / np.where(words.any(axis=0), words.sum(axis=0), np.nan)
            axes.plot(bounds, gap, marker="o", label=arm)
            rows.append(f"| {arm} | {' | '.join('' if np.isnan(one) else f'{one:+.2f}' for one in gap)} |")
            means = [extra[:, part].sum(axis=1) / words[:, part].sum(axis=1) for part in POOLED.values()]
            pooled.append(f"| {arm} | {' | '.join(map(mean_and_interval, means))} |")
    axes.tick_params(axis="x", rotation=45)
    axes.legend(fontsize="small")
    save(figure, folder / "distances.png")
    title = "## Loss of a word by the distance to its last occurrence, minus dense"
    text = f"Words of four letters or more, from position {SETTLED:,} on; nats per word, over all words."
    means = "The mean over the documents, with its interval:"
    tables = "\n".join(rows) + f"\n\n{means}\n\n" + "\n".join(pooled)
    return f"{title}\n\n{text}\n\n{tables}\n\n![Loss by distance](distances.png)"


def by_word(main: pd.DataFrame, arm: str) -> tuple[np.ndarray, np.ndarray]:
    """Nats and words in each bin of distance: a row for each document."""
    cells = list(main.loc[main["arm"] == arm, "by_distance"])
    return np.array([cell["nats"] for cell in cells]), np.array([cell["words"] for cell in cells])


def positions(main: pd.DataFrame, long: pd.DataFrame, folder: Path) -> str:
    """The loss by position, up to four times the trained length, on the documents that all arms have read."""
    readers = long.groupby("document")["arm"].nunique()
    long = long[long["document"].map(readers) == long["arm"].nunique()]
    figure, axes = plot("position, tokens", "nats per token, mean over documents")
    rows = ["| arm, on " + str(long["document"].nunique()) + " documents | 0-8k | 8-16k | 16-24k | 24-32k |"]
    rows.append("| --- |" + " --- |" * 4)
    if not len(long):
        return ""
    for arm in dict.fromkeys(long["arm"]):
        per_document = [np.array(row) for row in long.loc[long["arm"] == arm, "by_position"]]
        curve = np.mean(per_document, axis=0) / BIN
        axes.plot(np.arange(len(curve) // 4) * 4 * BIN, curve.reshape(-1, 4).mean(axis=1), label=arm)
        rows.append(f"| {arm} | {' | '.join(f'{x:.3f}' for x in curve.reshape(4, -1).mean(axis=1))} |")
    shared = main[(main["arm"] == "dense") & main["document"].isin(set(long["document"]))]
    curve = np.mean([np.array(row) for row in shared["by_position"]], axis=0) / BIN
    axes.plot(np.arange(len(curve) // 4) * 4 * BIN, curve.reshape(-1, 4).mean(axis=1), label="dense", color="black")
    axes.legend(fontsize="small")
    save(figure, folder / "positions.png")
    return "## Loss by position\n\n" + "\n".join(rows) + "\n\n![Loss by position](positions.png)"


def plot(x: str, y: str) -> tuple[Figure, Any]:
    """An empty plot with its labels."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    axes.set(xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    return figure, axes


def save(figure: Figure, path: Path) -> None:
    """Write a plot, whole or not at all."""
    with whole_file(path, keeps_older=False) as unfinished:
        figure.savefig(unfinished, dpi=110, format="png", metadata={"Software": None})
