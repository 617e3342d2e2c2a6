"""The plots of a comparison. An arm has one colour and one marker in all of them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from llp.atomic_files import whole_file
from llp.comparison.contrasts import Judged
from llp.comparison.study import Study
from llp.comparison.tables import BUDGETS, accuracies, mean
from llp.evaluation.colours import COLOURS

_MORE_COLOURS = ("#0c8599", "#f08c00", "#6741d9", "#5c940d", "#a61e4d", "#364fc7", "#846358", "#d9480f", "#087f5b")
_MARKERS = "osD^vPX<>*"
_GREY, _BAND = "#495057", "#dee2e6"

Parts = Mapping[tuple[int, int], float]
"""A run's values by the first and the last position, or the least and the greatest distance, of a slice."""


class Style(NamedTuple):
    """How an arm is drawn."""

    color: str
    marker: str


class Curve(NamedTuple):
    """Values of runs that differ by their seed: where they are, their mean, and the least and the greatest one."""

    x: list[float]
    means: list[float]
    least: list[float]
    greatest: list[float]


def draw_all(study: Study, named: Sequence[Judged], exploratory: Sequence[Judged], unit: str) -> dict[str, Any]:
    """The plots that there is something to show in, by the names of their files."""
    drawn = {
        "contrasts.png": forest(study, named, exploratory, unit),
        "cost.png": loss_over_cost(study),
        "position.png": loss_by_position(study),
        "recall.png": loss_on_recall(study),
        "accuracy.png": accuracy_by_distance(study),
        "learning_rates.png": loss_over_rates(study),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def save(figure: Any, path: Path) -> None:
    """Write a plot, with the same bytes whenever it is drawn from the same values."""
    with whole_file(path, keeps_older=False) as temporary:
        figure.savefig(temporary, format="png", dpi=130, metadata={"Software": None})


def styles(study: Study) -> dict[str, Style]:
    """Each arm's style: the architecture's own colour for the first arm of its kind, else the next free one."""
    classes = dict(zip(study.recorded["arm"], study.recorded["class_path"], strict=True))
    colours: dict[str, str] = {}
    for arm in study.spec.arms:
        own = COLOURS.get(classes.get(arm, "").rpartition(".")[2])
        if own and own not in colours.values():
            colours[arm] = own
    free = cycle(colour for colour in _MORE_COLOURS if colour not in colours.values())
    markers = cycle(_MARKERS)
    return {arm: Style(colours.get(arm) or next(free), next(markers)) for arm in study.spec.arms}


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


def forest(study: Study, named: Sequence[Judged], exploratory: Sequence[Judged], unit: str) -> Any | None:
    """The differences with their intervals over the noise floor: those named before the runs, and the others below."""
    groups = {"Named before the runs": named, "Exploratory": exploratory}
    shown = {title: rows for title, group in groups.items() if (rows := [one for one in group if one.outcome])}
    if not shown:
        return None
    heights = [len(rows) + 2.5 for rows in shown.values()]
    figure, look = _figure(8, 0.3 * sum(heights)), styles(study)
    panels = figure.subplots(len(shown), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (title, rows) in zip(panels, shown.items(), strict=True):
        axes.axvline(0, color=_GREY, linewidth=0.8)
        for y, one in enumerate(rows):
            _forest_row(axes, -y, one, look[one.contrast.first])
        names = [f"{c.first} - {c.second}, {BUDGETS[c.budget]}" for c in (one.contrast for one in rows)]
        axes.set_yticks([-y for y in range(len(rows))], names)
        axes.set_ylim(0.5 - len(rows), 0.5)
        _finish(axes, title, "", "")
        axes.grid(axis="y", visible=False)
    panels[-1].set_xlabel(f"{unit}: below 0 the first one is better")
    return figure


def _forest_row(axes: Any, y: int, one: Judged, style: Style) -> None:
    assert one.outcome is not None
    if one.floor is not None:
        axes.barh(y, 2 * one.floor, left=-one.floor, height=1, color=_BAND, zorder=0)
    if one.outcome.interval is not None:
        axes.plot(one.outcome.interval[:2], [y, y], color=style.color, linewidth=2)
    axes.plot(one.outcome.estimate, y, marker=style.marker, color=style.color, zorder=3)


def loss_over_cost(study: Study) -> Any | None:
    """Validation loss in the course of training, over FLOPs and over the seconds of the timing pass.

    The lines are the runs of the first budget; hollow markers are the ends of runs with equal FLOPs or seconds.
    """
    finals, look, first = study.first_finals(), styles(study), study.spec.budgets[0]
    if not finals:
        return None
    costs = {"flops": "training FLOPs"}
    if any(arm in study.timing.seconds_per_step for arm in finals):
        costs["seconds"] = "seconds, as the timing pass measured them"
    figure = _figure(1.8 + 4.6 * len(costs), 4.2)
    panels = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    for axes, (cost, label) in zip(panels, costs.items(), strict=True):
        for arm, runs in finals.items():
            total, curve = study.spent(runs.iloc[0], cost), _validation_curve(runs)
            if curve and total is not None:
                steps = runs["steps"].iloc[0]
                _banded(axes, curve._replace(x=[step * total / steps for step in curve.x]), look[arm], arm)
        for (arm, budget), runs in study.finals.items():
            if budget == cost != first and (total := study.spent(runs.iloc[0], cost)) is not None:
                loss = mean(runs["validation_loss"])
                axes.plot(total, loss, look[arm].marker, color=look[arm].color, markerfacecolor="white", zorder=4)
        axes.set_xlim(left=0)
        _finish(axes, f"Validation loss, {BUDGETS[first]}", label, "")
    panels[0].set_ylabel("nats per token")
    # What comes before the first fifth of the training would flatten all the rest.
    late = [entry["loss"] for runs in finals.values() for _, run in runs.iterrows() for entry in run["curve"]
            if entry["step"] >= run["steps"] / 5 and _is_finite(entry["loss"])]  # fmt: skip
    panels[0].set_ylim(top=max(late, default=None))
    _legend(figure, panels[0])
    return figure


def _is_finite(loss: float | None) -> bool:
    return loss is not None and math.isfinite(loss)


def _validation_curve(runs: pd.DataFrame) -> Curve | None:
    """The validation loss at the steps at which all runs were validated."""
    losses = [{(entry["step"],) * 2: entry["loss"] for entry in curve if entry["step"]} for curve in runs["curve"]]
    return averaged([{step: math.nan if loss is None else loss for step, loss in run.items()} for run in losses])


def averaged(runs: Iterable[Parts]) -> Curve | None:
    """The values of several runs at the middle of each slice that all of them have; None without any."""
    parts = [run for run in runs if run]
    shared = sorted(set.intersection(*map(set, parts))) if parts else []
    if not shared:
        return None
    values = np.array([[run[part] for part in shared] for run in parts], dtype=float)
    middles = [(first + last) / 2 for first, last in shared]
    return Curve(middles, *(extreme(values, axis=0).tolist() for extreme in (np.mean, np.min, np.max)))


def _banded(axes: Any, curve: Curve, style: Style, label: str) -> None:
    """A line of the means within a band from the lowest to the highest seed."""
    axes.plot(curve.x, curve.means, color=style.color, marker=style.marker, markersize=4, label=label)
    axes.fill_between(curve.x, curve.least, curve.greatest, color=style.color, alpha=0.15, linewidth=0)


def _losses(slices: Mapping[str, Any] | None, kind: str) -> Parts:
    """Nats per token in the slices of a kind that have tokens."""
    parts = (slices or {}).get(kind) or []
    known = (part for part in parts if part["tokens"] and part["nats"] is not None)
    return {(part["first"], part["last"]): part["nats"] / part["tokens"] for part in known}


def _against(study: Study, kind: str) -> dict[str, Curve | None]:
    """The difference of each arm's loss to that of the reference by slice, paired by seed."""
    finals = study.first_finals()
    own = finals.pop(study.spec.reference, study.recorded.head(0))
    reference = {seed: _losses(slices, kind) for seed, slices in zip(own["seed"], own["slices"], strict=True)}
    curves = {}
    for arm, runs in finals.items():
        seeds = zip(runs["seed"], runs["slices"], strict=True)
        pairs = [(_losses(slices, kind), reference[seed]) for seed, slices in seeds if seed in reference]
        curves[arm] = averaged({part: a[part] - b[part] for part in a.keys() & b.keys()} for a, b in pairs)
    return curves


def _by_distance(axes: Any, curves: Mapping[str, Curve | None], study: Study) -> bool:
    """Draw the curves over a distance in tokens, with lines at the lengths of an arm's segments; False without any."""
    look, known = styles(study), {arm: curve for arm, curve in curves.items() if curve is not None}
    for arm, curve in known.items():
        _banded(axes, curve, look[arm], arm)
    if known:
        least = min(min(curve.x) for curve in known.values())
        axes.set_xscale("log", base=2) if least > 0 else axes.set_xscale("symlog", base=2, linthresh=1)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        _mark_segments(axes, study, look, max(max(curve.x) for curve in known.values()))
    return bool(known)


def _mark_segments(axes: Any, study: Study, look: Mapping[str, Style], longest: float) -> None:
    """Vertical lines at m, 2 m and L m of the first arm that has segments of m tokens and L layers."""
    lengths = study.recorded.reindex(columns=["arm", "model.segment_len", "model.n_layers"]).dropna()
    lengths = lengths.drop_duplicates("arm").set_index("arm")
    for arm in [arm for arm in look if arm in lengths.index][:1]:
        m, n_layers = lengths.loc[arm]
        for factor, name in ((1, "m"), (2, "2 m"), (n_layers, "L m")):
            if factor * m <= 1.5 * longest:
                color = look[arm].color
                axes.axvline(factor * m, color=color, linewidth=0.8, linestyle="--", zorder=0)
                frame = {"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.8}
                axes.text(factor * m, 0.97, f"{name} ({arm})", transform=axes.get_xaxis_transform(), bbox=frame,
                          rotation=90, va="top", ha="center", fontsize=8, color=color)  # fmt: skip


def loss_by_position(study: Study) -> Any | None:
    """The loss by position in the window, as the difference to the reference."""
    figure = _figure(8, 4.2)
    axes = figure.add_subplot()
    if not _by_distance(axes, _against(study, "position"), study):
        return None
    axes.axhline(0, color=_GREY, linewidth=0.8)
    label = f"nats per token, minus that of {study.spec.reference}"
    _finish(axes, "Loss by position", "position in the window (tokens)", label)
    _legend(figure, axes)
    return figure


def loss_on_recall(study: Study) -> Any | None:
    """The loss on tokens that complete a bigram seen before, by the distance of its last occurrence."""
    figure = _figure(11, 4.2)
    left, right = figure.subplots(1, 2)
    finals = study.first_finals()
    curves = {arm: averaged(_losses(slices, "recall") for slices in runs["slices"]) for arm, runs in finals.items()}
    if not _by_distance(left, curves, study):
        return None
    _by_distance(right, _against(study, "recall"), study)
    right.axhline(0, color=_GREY, linewidth=0.8)
    distance = "tokens since the bigram was last seen"
    _finish(left, "Loss on recall tokens", distance, "nats per token")
    _finish(right, f"… minus that of {study.spec.reference}", distance, "")
    _legend(figure, left)
    return figure


def accuracy_by_distance(study: Study) -> Any | None:
    """The fraction of correct labels by the distance to the answer."""
    figure = _figure(8, 4.2)
    axes = figure.add_subplot()
    curves = {arm: averaged(accuracies(test) for test in runs["test"]) for arm, runs in study.first_finals().items()}
    if not _by_distance(axes, curves, study):
        return None
    axes.set_ylim(-0.03, 1.03)
    _finish(axes, "Accuracy by distance", "tokens to the answer", "share of correct labels")
    _legend(figure, axes)
    return figure


def loss_over_rates(study: Study) -> Any | None:
    """The validation loss over the learning rates that were tried; dots are seeds, a ring marks the chosen rate."""
    figure, look = _figure(8, 4.2), styles(study)
    axes = figure.add_subplot()
    drawn: dict[float, list[float]] = {}
    for arm in study.spec.arms:
        runs = study.of_use("rate", arm)
        sizes = [size for size in runs.get("vocab_size", []) if isinstance(size, int)]
        start = math.log(sizes[0]) if sizes else math.inf  # the loss when all tokens are equally likely
        trials = [trial for trial in study.trials(arm) if trial.loss is not None and None not in trial.outcomes]
        capped = {
            trial.learning_rate: [min(loss, start) for loss in trial.outcomes if loss is not None] for trial in trials
        }
        points = {rate: mean(losses) for rate, losses in capped.items() if math.isfinite(mean(losses))}
        if points:
            color, marker = look[arm]
            axes.plot(list(points), list(points.values()), color=color, marker=marker, markersize=5, label=arm)
            seeds = [(rate, loss) for rate in points for loss in capped[rate]]
            axes.plot(*zip(*seeds, strict=True), ".", color=color, markersize=3, alpha=0.5)
            best = min(points, key=lambda rate: points[rate])
            axes.plot(best, points[best], "o", markersize=11, fillstyle="none", color=color)
            for rate, loss in points.items():
                drawn.setdefault(rate, []).append(loss)
    if not drawn:
        return None
    losses = [loss for group in drawn.values() for loss in group]
    if max(losses) > min(losses) + 1:  # outliers would flatten all the rest
        axes.set_ylim(top=min(losses) + 1)
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks(sorted(drawn), [f"{rate:g}" for rate in sorted(drawn)])
    _finish(axes, "Validation loss over the learning rate (ring: the best)", "peak learning rate", "nats per token")
    _legend(figure, axes)
    return figure
