"""What a study says about each pair of contestants: those that were named before the runs, and all others."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from llp.comparison.checks import Check, noise_is_sound, reasons
from llp.comparison.statistics import Difference, NoiseFloor, Verdict, difference, holm, noise_floor, verdict
from llp.comparison.study import Contrast, Study


class Judged(NamedTuple):
    """A contrast, and all that can be said about it."""

    contrast: Contrast
    outcome: Difference | None
    """None: they can't be compared, or have no finished runs of one seed."""
    floor: float | None
    """The noise floor for the seeds that both have; None: unknown."""
    reasons: list[str]
    """Why they can't be compared."""
    p: float | None
    """After Holm's correction; None for what wasn't named before the runs, or has no interval."""
    verdict: Verdict | None
    """None for what wasn't named before the runs, has no outcome, or no noise floor to judge it by."""

    @property
    def is_below_the_floor(self) -> bool:
        """Whether the difference is no more than a change of the seeds makes."""
        return self.outcome is not None and self.floor is not None and abs(self.outcome.estimate) <= self.floor


def usable_floor(study: Study) -> NoiseFloor | None:
    """The noise floor; None if fewer than two runs for it are there, or if they differ by more than their seed."""
    return noise_floor(study.noise) if noise_is_sound(study) else None


def judge_all(study: Study, checks: Sequence[Check]) -> dict[Contrast, Judged]:
    """The contrasts that were named before the runs, and every contestant against the reference under every budget."""
    floor = usable_floor(study)
    others = [Contrast(arm, study.reference, budget) for budget in study.budgets for arm in study.arms]
    contrasts = [*study.primary, *(contrast for contrast in others if contrast.first != contrast.second)]
    return {contrast: _judge(study, checks, contrast, floor) for contrast in contrasts}


def _judge(study: Study, checks: Sequence[Check], contrast: Contrast, floor: NoiseFloor | None) -> Judged:
    """The difference under a contrast, if the two may be compared; no verdict yet."""
    obstacles = reasons(checks, contrast)
    first, second = (study.finals.get((arm, contrast.budget), []) for arm in contrast[:2])
    outcome = None if obstacles else difference(first, second)
    n = 0 if outcome is None else len(outcome.seeds)
    return Judged(contrast, outcome, floor.smallest(n, n) if floor and n else None, obstacles, None, None)


def primary(study: Study, judged: Mapping[Contrast, Judged]) -> list[Judged]:
    """The contrasts that were named before the runs, with verdicts.

    Holm's correction is over all of them; one that has no p value, since runs are missing or can't be compared, counts
    as one of 1, so that the others don't become surer by it.
    """
    floor = usable_floor(study)
    named = [judged[contrast] for contrast in study.primary]
    intervals = [None if one.outcome is None else one.outcome.interval for one in named]
    adjusted = holm({number: 1.0 if interval is None else interval.p for number, interval in enumerate(intervals)})
    p_values = [None if interval is None else adjusted[number] for number, interval in enumerate(intervals)]
    return [
        one._replace(p=p, verdict=verdict(one.outcome, floor, p) if one.outcome and floor else None)
        for one, p in zip(named, p_values, strict=True)
    ]


def exploratory(study: Study, judged: Mapping[Contrast, Judged]) -> list[Judged]:
    """The others, without verdicts.

    Left out are a named one the other way round, and one whose runs are those of an earlier budget: contestants that
    train as many positions as the reference have the same runs at equal windows and at equal positions.
    """
    named = {frozenset(contrast) for contrast in study.primary}
    others = [one for contrast, one in judged.items() if frozenset(contrast) not in named]
    return [one for one in others if not _is_repeated(study, one.contrast)]


def _is_repeated(study: Study, contrast: Contrast) -> bool:
    """Whether both have runs, and all are the same as under an earlier budget."""

    def runs(budget: str) -> list[list[str]]:
        return [[record.run for record in study.finals.get((arm, budget), [])] for arm in contrast[:2]]

    own = runs(contrast.budget)
    earlier = study.budgets[: study.budgets.index(contrast.budget)]
    return all(own) and any(runs(budget) == own for budget in earlier)
