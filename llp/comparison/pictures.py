"""The pictures of a comparison. A contestant has one colour and one marker in all of them."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from llp.atomic_files import whole_file
from llp.comparison.checks import setting, spent
from llp.comparison.judgement import Judged
from llp.comparison.markdown import BUDGETS
from llp.comparison.statistics import final_loss, vocabulary
from llp.comparison.study import Record, Study, Trial
from llp.evaluation.colours import COLOURS

_MORE_COLOURS = ("#0c8599", "#f08c00", "#6741d9", "#5c940d", "#a61e4d", "#364fc7", "#846358", "#d9480f", "#087f5b")
_MARKERS = "osD^vPX<>*"
_BAND = "#dee2e6"


class Style(NamedTuple):
    """How a contestant is drawn."""

    color: str
    marker: str


class Slice(NamedTuple):
    """A figure by distance or position: its place, the mean over the seeds, the least and the greatest."""

    places: list[float]
    means: list[float]
    least: list[float]
    greatest: list[float]


def styles(study: Study) -> dict[str, Style]:
    """Each contestant's style: the architecture's own colour for the first of its kind, else the next free one."""
    classes = {arm: record.class_path.rpartition(".")[2] for arm, record in _examples(study).items()}
    colours: dict[str, str] = {}
    for arm in study.arms:
        own = COLOURS.get(classes.get(arm, ""))
        if own and own not in colours.values():
            colours[arm] = own
    free = cycle(colour for colour in _MORE_COLOURS if colour not in colours.values())
    markers = cycle(_MARKERS)
    return {arm: Style(colours.get(arm) or next(free), next(markers)) for arm in study.arms}


def _examples(study: Study) -> dict[str, Record]:
    """A record of each contestant that has one."""
    records = [record for trials in study.trials.values() for trial in trials for record in trial.records]
    records += [record for group in study.finals.values() for record in group]
    return {record.arm: record for record in records}


def save(figure: Any, path: Path) -> Path:
    """Write a picture that has the same bytes whenever it is drawn from the same figures."""
    with whole_file(path, keeps_older=False) as temporary:
        figure.savefig(temporary, format="png", dpi=130, metadata={"Software": None})
    return path


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # takes a second, and only this needs it

    return Figure(figsize=(width, height), layout="constrained")


def _finish(axes: Any, title: str, xlabel: str, ylabel: str) -> None:
    axes.set_title(title, loc="left", fontsize=11)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _legend(figure: Any, axes: Any) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9)


def forest(study: Study, primary: Sequence[Judged], exploratory: Sequence[Judged], unit: str) -> Any | None:
    """The differences with their intervals over the noise floor: those named before the runs, and below them others."""
    groups = {"Named before the runs": primary, "Exploratory": exploratory}
    shown = {title: rows for title, group in groups.items() if (rows := [one for one in group if one.outcome])}
    if not shown:
        return None
    heights = [len(rows) + 2.5 for rows in shown.values()]
    figure, look = _figure(8, 0.3 * sum(heights)), styles(study)
    panels = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (title, rows) in zip(panels, shown.items(), strict=True):
        _forest_panel(axes, rows, look)
        _finish(axes, title, "", "")
        axes.grid(axis="y", visible=False)
    panels[-1].set_xlabel(f"{unit}: below 0 the first one is better")
    return figure


def _forest_panel(axes: Any, rows: Sequence[Judged], look: Mapping[str, Style]) -> None:
    axes.axvline(0, color="#495057", linewidth=0.8)
    for place, one in enumerate(rows):
        assert one.outcome is not None
        style, interval = look[one.contrast.first], one.outcome.interval
        if one.floor is not None:
            axes.barh(-place, 2 * one.floor, left=-one.floor, height=1, color=_BAND, zorder=0)
        if interval is not None:
            axes.plot([interval.low, interval.high], [-place] * 2, color=style.color, linewidth=2)
        axes.plot(one.outcome.estimate, -place, marker=style.marker, color=style.color, zorder=3)
    names = [f"{c.first} - {c.second}, {BUDGETS[c.budget]}" for c in (one.contrast for one in rows)]
    axes.set_yticks([-place for place in range(len(rows))], names)
    axes.set_ylim(0.5 - len(rows), 0.5)


def loss_over_cost(study: Study) -> Any | None:
    """Validation loss in the course of training, over FLOPs and over the seconds of the timing pass.

    The lines are the runs of the first budget, the hollow markers the ends of those that had equal FLOPs or seconds.
    """
    runs = study.first_finals
    if not runs:
        return None
    budget = study.budgets[0]
    costs = {"flops": "training FLOPs"}
    if any(arm in study.seconds_per_step for arm in runs):
        costs["seconds"] = "seconds, as the timing pass measured them"
    figure, look = _figure(1.8 + 4.6 * len(costs), 4.2), styles(study)
    panels = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    for axes, (cost, label) in zip(panels, costs.items(), strict=True):
        for arm, records in runs.items():
            steps, losses = _curves(records)
            total = spent(study, records[0], cost)
            if steps and total is not None:
                _banded(axes, Slice([step * total / records[0].steps for step in steps], *losses), look[arm], arm)
        if budget != cost:
            _ends(axes, study, look, cost)
        axes.set_xlim(left=0)
        _finish(axes, f"Validation loss, {BUDGETS[budget]}", label, "")
    panels[0].set_ylabel("nats per token")
    top = max(_late(records) for records in runs.values())
    if math.isfinite(top):
        panels[0].set_ylim(top=top)
    _legend(figure, panels[0])
    return figure


def _ends(axes: Any, study: Study, look: Mapping[str, Style], budget: str) -> None:
    """Where the runs of another budget ended, on the mean of their seeds."""
    for arm in study.arms:
        for records in filter(None, [study.finals.get((arm, budget))]):
            cost = spent(study, records[0], budget)
            loss = float(np.mean([final_loss(record) for record in records]))
            if cost is not None and math.isfinite(loss):
                axes.plot(cost, loss, look[arm].marker, color=look[arm].color, markerfacecolor="white", zorder=4)


def _curves(records: Sequence[Record]) -> tuple[list[float], tuple[list[float], list[float], list[float]]]:
    """The steps at which all runs were validated, and the mean, least and greatest loss there."""
    curves = [{entry["step"]: _or_nan(entry["loss"]) for entry in record.curve} for record in records]
    steps = sorted(set.intersection(*(set(curve) for curve in curves)) - {0})
    return steps, _spread([[curve[step] for step in steps] for curve in curves])


def _late(records: Sequence[Record]) -> float:
    """The greatest loss after the first fifth of the training: what comes before would flatten all the rest."""
    entries = (entry for record in records for entry in record.curve if entry["step"] >= record.steps / 5)
    return max((loss for entry in entries if math.isfinite(loss := _or_nan(entry["loss"]))), default=math.nan)


def _spread(values: Sequence[Sequence[float]]) -> tuple[list[float], list[float], list[float]]:
    """The mean, the least and the greatest over (S, P) values."""
    array = np.array(values, dtype=float)
    return array.mean(axis=0).tolist(), array.min(axis=0).tolist(), array.max(axis=0).tolist()


def _banded(axes: Any, curve: Slice, style: Style, label: str) -> None:
    """A line of the means within a band from the least to the greatest seed."""
    axes.plot(curve.places, curve.means, color=style.color, marker=style.marker, markersize=4, label=label)
    axes.fill_between(curve.places, curve.least, curve.greatest, color=style.color, alpha=0.15, linewidth=0)


def _parts(record: Record, kind: str) -> dict[tuple[int, int], float]:
    """Nats per token by the first and the last place of each part; parts without tokens are left out."""
    parts = (record.slices or {}).get(kind) or []
    return {
        (part["first"], part["last"]): part["nats"] / part["tokens"]
        for part in parts
        if part["tokens"] and part["nats"] is not None
    }


def _accuracies(record: Record) -> dict[tuple[int, int], float]:
    """The share of correct labels by distance."""
    parts = (record.test or {}).get("distances") or []
    return {(part["first"], part["last"]): part["correct"] / part["labels"] for part in parts if part["labels"]}


def sliced(records: Iterable[Mapping[tuple[int, int], float]]) -> Slice | None:
    """Runs' figures by place, in the middle of each part; None without a part that all have."""
    runs = [run for run in records if run]
    shared = sorted(set.intersection(*(set(run) for run in runs))) if runs else []
    if not shared:
        return None
    return Slice(
        [(first + last) / 2 for first, last in shared], *_spread([[run[part] for part in shared] for run in runs])
    )


def _against(first: Sequence[Record], second: Sequence[Record], kind: str) -> Slice | None:
    """The difference of two contestants' losses by place, of the runs of each seed."""
    others = {record.seed: _parts(record, kind) for record in second}
    pairs = [(_parts(record, kind), others[record.seed]) for record in first if record.seed in others]
    return sliced({part: a[part] - b[part] for part in a.keys() & b.keys()} for a, b in pairs)


def _by_distance(axes: Any, curves: Mapping[str, Slice | None], study: Study) -> bool:
    """Draw the curves over a distance in tokens, with the lengths of a segmented contestant; False: there is none."""
    look, there = styles(study), {arm: curve for arm, curve in curves.items() if curve is not None}
    for arm, curve in there.items():
        _banded(axes, curve, look[arm], arm)
    if there:
        least = min(min(curve.places) for curve in there.values())
        axes.set_xscale("log", base=2) if least > 0 else axes.set_xscale("symlog", base=2, linthresh=1)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        _mark_segments(axes, study, look, max(max(curve.places) for curve in there.values()))
    return bool(there)


def _mark_segments(axes: Any, study: Study, look: Mapping[str, Style], longest: float) -> None:
    """Vertical lines at m, 2 m and L m of the first contestant that has segments."""
    for arm, record in ((arm, record) for arm, record in _examples(study).items() if arm in look):
        m, n_layers = setting(record, "model", "segment_len"), setting(record, "model", "n_layers")
        if not m or arm not in look:
            continue
        for factor, name in ((1, "m"), (2, "2 m"), (n_layers, "L m")):
            if factor and factor * m <= 1.5 * longest:
                axes.axvline(factor * m, color=look[arm].color, linewidth=0.8, linestyle="--", zorder=0)
                place = {"rotation": 90, "va": "top", "ha": "center", "fontsize": 8, "color": look[arm].color}
                frame = {"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.8}
                axes.text(
                    factor * m, 0.97, f"{name} ({arm})", transform=axes.get_xaxis_transform(), bbox=frame, **place
                )
        return


def loss_by_position(study: Study) -> Any | None:
    """The loss by position in the window, as the difference to the reference."""
    runs = study.first_finals
    own = runs.get(study.reference, [])
    figure = _figure(8, 4.2)
    axes = figure.add_subplot()
    curves = {arm: _against(records, own, "position") for arm, records in runs.items() if arm != study.reference}
    if not _by_distance(axes, curves, study):
        return None
    axes.axhline(0, color="#495057", linewidth=0.8)
    _finish(
        axes, "Loss by position", "position in the window (tokens)", f"nats per token, minus that of {study.reference}"
    )
    _legend(figure, axes)
    return figure


def loss_on_recall(study: Study) -> Any | None:
    """The loss on tokens that complete a bigram seen before, by the distance of its last occurrence."""
    runs = study.first_finals
    own = runs.get(study.reference, [])
    figure = _figure(11, 4.2)
    left, right = figure.subplots(1, 2)
    curves = {arm: sliced(_parts(record, "recall") for record in records) for arm, records in runs.items()}
    if not _by_distance(left, curves, study):
        return None
    others = {arm: _against(records, own, "recall") for arm, records in runs.items() if arm != study.reference}
    _by_distance(right, others, study)
    right.axhline(0, color="#495057", linewidth=0.8)
    distance = "tokens since the bigram was last seen"
    _finish(left, "Loss on recall tokens", distance, "nats per token")
    _finish(right, f"… minus that of {study.reference}", distance, "")
    _legend(figure, left)
    return figure


def accuracy_by_distance(study: Study) -> Any | None:
    """The share of correct labels by the distance at which their answer lies."""
    figure = _figure(8, 4.2)
    axes = figure.add_subplot()
    runs = study.first_finals
    curves = {arm: sliced(_accuracies(record) for record in records) for arm, records in runs.items()}
    if not _by_distance(axes, curves, study):
        return None
    axes.set_ylim(-0.03, 1.03)
    _finish(axes, "Accuracy by distance", "tokens to the answer", "share of correct labels")
    _legend(figure, axes)
    return figure


def loss_over_rates(study: Study) -> Any | None:
    """The validation loss over the learning rates that were tried, seeds as dots; the chosen rate is ringed."""
    figure, look = _figure(8, 4.2), styles(study)
    axes = figure.add_subplot()
    rates: set[float] = set()
    losses: list[float] = []
    for arm in study.arms:
        tried = [trial for trial in study.trials.get(arm, []) if trial.records]
        runs = [(trial.learning_rate, capped(record)) for trial in tried for record in trial.records]
        points = {trial.learning_rate: loss for trial in tried if math.isfinite(loss := capped_mean(trial))}
        if points:
            color, marker = look[arm]
            axes.plot(list(points), list(points.values()), color=color, marker=marker, markersize=5, label=arm)
            axes.plot(*zip(*runs, strict=True), ".", color=color, markersize=3, alpha=0.5)
            best = min(points, key=lambda rate: points[rate])
            axes.plot(best, points[best], "o", markersize=11, fillstyle="none", color=color)
            rates |= points.keys()
            losses += points.values()
    if not losses:
        return None
    if max(losses) > min(losses) + 1:  # what is far off would flatten all the rest
        axes.set_ylim(top=min(losses) + 1)
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks(sorted(rates), [f"{rate:g}" for rate in sorted(rates)])
    _finish(axes, "Validation loss over the learning rate (ring: the best)", "peak learning rate", "nats per token")
    _legend(figure, axes)
    return figure


def capped_mean(trial: Trial) -> float:
    """The mean validation loss over the seeds, each at most that of the start."""
    return math.fsum(map(capped, trial.records)) / len(trial.records)


def capped(record: Record) -> float:
    """The validation loss, at most that of the start, where all tokens are equally likely."""
    size = vocabulary(record)
    return min(final_loss(record), math.inf if size is None else math.log(size))


def ablation(name: str, points: Sequence[tuple[Any, Sequence[float]]], unit: str, own: Any) -> Any | None:
    """A setting's values and the figures of their runs; the contestant's own value is ringed."""
    points = [(value, figures) for value, figures in points if figures]
    if not points:
        return None
    figure = _figure(5, 3.4)
    axes = figure.add_subplot()
    is_scale = all(isinstance(value, int | float) and not isinstance(value, bool) and value > 0 for value, _ in points)
    places: list[float] = [float(value) for value, _ in points] if is_scale else list(map(float, range(len(points))))
    means = [float(np.mean(figures)) for _, figures in points]
    for place, (_, figures) in zip(places, points, strict=True):
        axes.plot([place] * len(figures), figures, ".", color="#adb5bd")
    axes.plot(places, means, marker="o", color="#1c7ed6")
    chosen = [number for number, (value, _) in enumerate(points) if value == own]
    for number in chosen:
        axes.plot(places[number], means[number], "o", markersize=13, fillstyle="none", color="#1c7ed6")
    if is_scale:
        axes.set_xscale("log", base=2)
        axes.minorticks_off()
    axes.set_xticks(places, ["none" if value is None else str(value) for value, _ in points])
    _finish(axes, name + (" (ring: its own)" if chosen else ""), name.rpartition(".")[2], unit)
    return figure


def ablation_file(name: str) -> str:
    """The name of an ablation's picture."""
    return f"ablation-{re.sub(r'[^A-Za-z0-9_.]+', '-', name)}.png"


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def draw_all(
    study: Study, primary: Sequence[Judged], exploratory: Sequence[Judged], unit: str
) -> Iterator[tuple[str, Any]]:
    """The pictures that there is something to show in, by the names of their files."""
    drawn = {
        "contrasts.png": forest(study, primary, exploratory, unit),
        "cost.png": loss_over_cost(study),
        "position.png": loss_by_position(study),
        "recall.png": loss_on_recall(study),
        "accuracy.png": accuracy_by_distance(study),
        "learning_rates.png": loss_over_rates(study),
    }
    yield from ((name, figure) for name, figure in drawn.items() if figure is not None)
