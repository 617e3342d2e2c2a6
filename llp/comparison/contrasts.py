"""The differences between arms: those named before the runs, with verdicts, and all others."""

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

from llp.comparison.checks import Check, reasons
from llp.comparison.plan import Plan
from llp.comparison.records import NOISE, Contrast
from llp.comparison.statistics import METHODS, Difference, NoiseFloor, Verdict, difference, holm, noise_floor, verdict


class Judged(NamedTuple):
    """A contrast and everything that can be said about it."""

    contrast: Contrast
    outcome: Difference | None
    """None if the arms can't be compared, or have no finished runs with a common seed."""
    floor: float | None
    """The noise floor for the seeds that both arms have; None if unknown."""
    reasons: list[str]
    """Why the arms can't be compared."""
    p: float | None = None
    """The p value after Holm's correction; None for exploratory contrasts and those without an interval."""
    verdict: Verdict | None = None
    """None for exploratory contrasts, and without an outcome or a noise floor."""


def usable_floor(plan: Plan) -> NoiseFloor | None:
    """The noise floor; None if there are fewer than two runs for it, or if one has an infinite loss."""
    runs = plan.tested(NOISE)
    return noise_floor(runs) if runs["is_finite"].all() else None


def named(plan: Plan, checks: Sequence[Check]) -> list[Judged]:
    """The contrasts that were named before the runs, with verdicts.

    Holm's correction is over all of them. One without a p value, because runs are missing or can't be compared, counts
    with a p value of 1, so that it doesn't make the others more certain.
    """
    floor = usable_floor(plan)
    judged = [_judge(plan, checks, Contrast(*contrast), floor) for contrast in plan.spec.primary]
    intervals = [None if one.outcome is None else one.outcome.interval for one in judged]
    adjusted = holm([1.0 if interval is None else interval.p for interval in intervals])
    p_values = [None if interval is None else p for interval, p in zip(intervals, adjusted, strict=True)]
    return [
        one._replace(p=p, verdict=verdict(one.outcome, floor, p) if one.outcome and floor else None)
        for one, p in zip(judged, p_values, strict=True)
    ]


def exploratory(plan: Plan, checks: Sequence[Check]) -> list[Judged]:
    """Every arm against the reference under every budget, and those that the specification asks for; no verdicts.

    Skips preregistered pairs (in either order) and pairs whose runs an earlier budget already reported: arms that train
    as many positions as the reference have the same runs at equal windows and positions.
    """
    floor, spec = usable_floor(plan), plan.spec
    beforehand = {frozenset(contrast) for contrast in spec.primary}
    pairs = [Contrast(arm, spec.reference, budget) for budget in spec.budgets for arm in spec.arms]
    pairs += (Contrast(*contrast) for contrast in spec.exploratory)
    others = {frozenset(one): one for one in pairs if one.first != one.second and frozenset(one) not in beforehand}
    return [_judge(plan, checks, one, floor) for one in others.values() if not _is_repeated(plan, one)]


def _judge(plan: Plan, checks: Sequence[Check], contrast: Contrast, floor: NoiseFloor | None) -> Judged:
    obstacles = reasons(checks, contrast)
    first, second = (plan.tested(contrast.budget, arm) for arm in contrast[:2])
    outcome = None if obstacles else difference(first, second)
    return Judged(contrast, outcome, floor.smallest(len(outcome.seeds)) if floor and outcome else None, obstacles)


def _is_repeated(plan: Plan, contrast: Contrast) -> bool:
    """Whether both arms have runs, and all of them are the same as under an earlier budget."""

    def runs(budget: str) -> list[list[str]]:
        return [list(plan.tested(budget, arm).index) for arm in contrast[:2]]

    own, budgets = runs(contrast.budget), list[str](plan.spec.budgets)
    return all(own) and any(runs(budget) == own for budget in budgets[: budgets.index(contrast.budget)])


def contrast_table(beforehand: Sequence[Judged], others: Sequence[Judged]) -> pd.DataFrame:
    """The rows of `contrasts.csv`: each difference with all of its intervals, those named before the runs first."""
    rows = []
    for is_named, one in [*((True, one) for one in beforehand), *((False, one) for one in others)]:
        outcome = one.outcome
        row = {**one.contrast._asdict(), "named": is_named, "difference": outcome and outcome.estimate}
        for method in METHODS:
            interval = outcome.intervals.get(method) if outcome else None
            row |= {f"{method} {end}": interval and getattr(interval, end) for end in ("low", "high", "p")}
        row |= {
            "counts": outcome and outcome.method,
            "noise_floor": one.floor,
            "seeds": outcome and len(outcome.seeds),
            "documents": outcome and outcome.documents,
            "p_after_holm": one.p,
            "verdict": one.verdict,
        }
        rows.append(row)
    return pd.DataFrame(rows, dtype=object)
