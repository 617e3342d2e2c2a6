"""The plots of a comparison. An arm has one colour and one marker in all of them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from llp.atomic_files import whole_file
from llp.comparison.contrasts import Judged
from llp.comparison.plan import Plan
from llp.comparison.tables import BUDGETS, mean
from llp.evaluation.colours import COLOURS

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


def draw_all(plan: Plan, judged: Sequence[Judged], unit: str) -> dict[str, Any]:
    """The plots that there is something to show in, by the names of their files."""
    distance = "tokens since the bigram was last seen"
    drawn = {
        "contrasts.png": forest(plan, judged, unit),
        "cost.png": loss_over_cost(plan),
        "position.png": loss_by(plan, "position", "Loss by position", "position in the window (tokens)"),
        "recall.png": loss_by(plan, "recall", "Loss on recall tokens", distance),
        "accuracy.png": accuracy_by_distance(plan),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def save(figure: Any, path: Path) -> None:
    """Write a plot, with the same bytes whenever it is drawn from the same values."""
    with whole_file(path, keeps_older=False) as temporary:
        figure.savefig(temporary, format="png", dpi=130, metadata={"Software": None})


def styles(plan: Plan) -> dict[str, Style]:
    """Each arm's style: the architecture's own colour for the first arm of its kind, else one of matplotlib's."""
    colours: list[str] = []
    for number, settings in enumerate(plan.spec.arms.values()):
        own = COLOURS.get(settings["class_path"].rpartition(".")[2])
        colours.append(own if own and own not in colours else f"C{number}")
    markers = (_MARKERS[number % len(_MARKERS)] for number in range(len(colours)))
    return dict(zip(plan.spec.arms, map(Style, colours, markers), strict=True))


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # takes a second, and only this needs it

    return Figure(figsize=(width, height), layout="constrained")


def _finish(axes: Any, title: str, xlabel: str, ylabel: str) -> None:
    axes.set_title(title, loc="left", fontsize=11)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=9)


def forest(plan: Plan, judged: Sequence[Judged], unit: str) -> Any | None:
    """The differences with their intervals over the noise floor."""
    rows, look = [(one, one.outcome) for one in judged if one.outcome], styles(plan)
    if not rows:
        return None
    figure = _figure(8, 0.3 * (len(rows) + 2.5))
    axes = figure.add_subplot()
    axes.axvline(0, color=_GREY, linewidth=0.8)
    for y, (one, outcome) in enumerate(rows):
        style = look[one.contrast.first]
        if one.floor is not None:
            axes.barh(y, 2 * one.floor, left=-one.floor, height=1, color=_BAND, zorder=0)
        if outcome.interval is not None:
            axes.plot(outcome.interval[:2], [y, y], color=style.color, linewidth=2)
        axes.plot(outcome.estimate, y, marker=style.marker, color=style.color, zorder=3)
    axes.set_yticks(range(len(rows)), [f"{c.first} - {c.second}, {BUDGETS[c.budget]}" for (c, *_), _ in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    _finish(axes, "", f"{unit}: below 0 the first one is better", "")
    axes.grid(axis="y", visible=False)
    return figure


def loss_over_cost(plan: Plan) -> Any | None:
    """Validation loss in the course of training, over FLOPs and over the seconds of the timing pass.

    The lines are the runs of the first budget; hollow markers are the ends of runs with equal FLOPs or seconds.
    """
    finals, look, first = plan.first_finals(), styles(plan), plan.spec.budgets[0]
    if not finals or plan.spec.steps == 0:
        return None
    costs = {"flops": "training FLOPs"}
    if any(arm in plan.timing.seconds_per_step for arm in finals):
        costs["seconds"] = "seconds, as the timing pass measured them"
    figure = _figure(1.8 + 4.6 * len(costs), 4.2)
    panels = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    for axes, (cost, label) in zip(panels, costs.items(), strict=True):
        for arm, runs in finals.items():
            total, curve = plan.spent(runs.iloc[0], cost), _validation_curve(runs)
            if curve and total is not None:
                steps = runs["steps"].iloc[0]
                _banded(axes, curve._replace(x=[step * total / steps for step in curve.x]), look[arm], arm)
        for (arm, budget), runs in plan.finals.items():
            if budget == cost != first and (total := plan.spent(runs.iloc[0], cost)) is not None:
                loss = mean(runs["validation_loss"])
                axes.plot(total, loss, look[arm].marker, color=look[arm].color, markerfacecolor="white", zorder=4)
        axes.set_xlim(left=0)
        _finish(axes, f"Validation loss, {BUDGETS[first]}", label, "nats per token")
    # What comes before the first fifth of the training would flatten all the rest.
    late = [entry["loss"] for runs in finals.values() for _, run in runs.iterrows() for entry in run["curve"]
            if entry["step"] >= run["steps"] / 5 and math.isfinite(entry["loss"] or math.nan)]  # fmt: skip
    panels[0].set_ylim(top=max(late, default=None))
    for axes in panels[:-1]:
        axes.get_legend().remove()
    return figure


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


def _over_distance(plan: Plan, curves: Mapping[str, Curve | None], title: str, xlabel: str, ylabel: str) -> Any | None:
    """The curves of the arms over a distance in tokens; None without any."""
    known, look = {arm: curve for arm, curve in curves.items() if curve is not None}, styles(plan)
    if not known:
        return None
    figure = _figure(8, 4.2)
    axes = figure.add_subplot()
    for arm, curve in known.items():
        _banded(axes, curve, look[arm], arm)
    axes.axhline(0, color=_GREY, linewidth=0.8)
    least = min(min(curve.x) for curve in known.values())
    axes.set_xscale("log", base=2) if least > 0 else axes.set_xscale("symlog", base=2, linthresh=1)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    _finish(axes, title, xlabel, ylabel)
    return figure


def loss_by(plan: Plan, kind: str, title: str, xlabel: str) -> Any | None:
    """The difference of each arm's loss to that of the reference by slice, paired by seed.

    Args:
        plan: The plan, with what is known of its runs.
        kind: `position` for slices by position in the window, `recall` for recall tokens by distance.
        title: Of the plot.
        xlabel: What the slices are by.
    """

    def losses(runs: pd.DataFrame) -> dict[int, Parts]:
        """Nats per token by seed, in the slices that have tokens."""
        by_seed = zip(runs["seed"], runs["slices"], strict=True)
        return {
            seed: {(part["first"], part["last"]): part["nats"] / part["tokens"] for part in slices[kind] or []
                   if part["tokens"] and part["nats"] is not None}
            for seed, slices in by_seed if slices
        }  # fmt: skip

    finals = plan.first_finals()
    reference = losses(finals.pop(plan.spec.reference, plan.recorded.head(0)))
    curves = {
        arm: averaged(
            {part: own[part] - reference[seed][part] for part in own.keys() & reference[seed].keys()}
            for seed, own in losses(runs).items()
            if seed in reference
        )
        for arm, runs in finals.items()
    }
    return _over_distance(plan, curves, title, xlabel, f"nats per token, minus that of {plan.spec.reference}")


def accuracy_by_distance(plan: Plan) -> Any | None:
    """The fraction of correct labels by the distance to the answer; None for a text."""

    def accuracies(test: Mapping[str, Any]) -> Parts:
        parts = test.get("distances") or []
        return {(part["first"], part["last"]): part["correct"] / part["labels"] for part in parts if part["labels"]}

    curves = {arm: averaged(map(accuracies, runs["test"])) for arm, runs in plan.first_finals().items()}
    return _over_distance(plan, curves, "Accuracy by distance", "tokens to the answer", "share of correct labels")
