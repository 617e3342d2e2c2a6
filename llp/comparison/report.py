"""The report of a comparison, made from its records alone: `report.md`, CSV files and plots."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from llp.atomic_files import whole_file
from llp.comparison import contrasts, plots, tables
from llp.comparison.checks import Check, check
from llp.comparison.contrasts import Judged, usable_floor
from llp.comparison.statistics import NoiseFloor
from llp.comparison.study import NOISE, RATE, Failure, Study
from llp.comparison.tables import BUDGETS, counted, image, number, probability, ranged, run_names, signed

_FEW_DOCUMENTS = 10
_SHOWN_FINDINGS = 5


@dataclass(frozen=True)
class Report:
    """What a study says: the same records give the same report, to the byte.

    Whatever isn't there yet is named in it; a study without any record has a report, too.
    """

    study: Study

    def write(self, folder: Path) -> list[Path]:
        """Write the report in place of an older one.

        Returns:
            The files: `report.md`, `report.csv` (a row for each arm and budget), `contrasts.csv` (a row for each
            difference), `runs.csv` (a row for each run, with the commands that repeat it) and the plots.
        """
        texts = {
            "report.md": self.text,
            "report.csv": tables.to_csv(self.summary),
            "contrasts.csv": tables.to_csv(contrasts.contrast_table(self.named, self.exploratory)),
            "runs.csv": tables.to_csv(self.runs),
        }
        for name, text in texts.items():
            with whole_file(folder / name, keeps_older=False) as temporary:
                temporary.write_text(text, encoding="utf-8")
        for name, figure in self.plots.items():
            plots.save(figure, folder / name)
        return [folder / name for name in [*texts, *self.plots]]

    @cached_property
    def checks(self) -> list[Check]:
        return check(self.study)

    @cached_property
    def named(self) -> list[Judged]:
        return contrasts.named(self.study, self.checks)

    @cached_property
    def exploratory(self) -> list[Judged]:
        return contrasts.exploratory(self.study, self._against_reference)

    @cached_property
    def _against_reference(self) -> dict[contrasts.Contrast, Judged]:
        return contrasts.against_reference(self.study, self.checks)

    @cached_property
    def unit(self) -> str:
        """The unit of the metric: bits per byte for a text, nats per label for a task."""
        return next(iter(self.study.recorded["unit"].dropna()), "bits per byte")

    @cached_property
    def summary(self) -> pd.DataFrame:
        return tables.summary(self.study, self._against_reference, self.unit)

    @cached_property
    def runs(self) -> pd.DataFrame:
        return tables.listed_runs(self.study)

    @cached_property
    def plots(self) -> dict[str, Any]:
        """The plots by the names of their files."""
        return plots.draw_all(self.study, self.named, self.exploratory, self.unit)

    @cached_property
    def text(self) -> str:
        """The contents of `report.md`."""
        study, unit, drawn = self.study, self.unit, self.plots
        lines = [
            *_opening(study, self.checks, self.named, unit, drawn),
            *tables.results(study, self.summary, unit),
            *tables.contrasts(self.named, self.exploratory, unit),
            *_cost(study, drawn),
            *tables.reach(study, drawn),
            *tables.learning_rates(study, unit, drawn),
            *tables.scoring(study),
            *tables.runs(self.runs),
        ]
        return "\n".join(lines) + "\n"


def _opening(
    study: Study, checks: Sequence[Check], named: Sequence[Judged], unit: str, drawn: Collection[str]
) -> list[str]:
    """Name, description, a sentence for each contrast named before the runs, noise floor, progress and checks."""
    lines = [f"# {study.spec.name}", "", study.spec.description, "", "How to read this report: docs/comparison.md.", ""]
    lines += ["## What was found", ""]
    lines += [f"- {sentence(study, one, unit)}" for one in named] or ["No contrast was named before the runs."]
    n_documents = min((one.outcome.documents for one in named if one.outcome is not None), default=_FEW_DOCUMENTS)
    if n_documents == 1:
        alone = "the intervals are over seeds alone, as if there were no other text."
        lines += ["", f"The test counts as a single document: {alone}"]
    elif n_documents < _FEW_DOCUMENTS:
        hardly = "the intervals say little about how much other texts would differ."
        lines += ["", f"The test has only {n_documents} documents: {hardly}"]
    lines += ["", _noise_floor(study, unit), "", *image(drawn, "contrasts.png", "Differences with their intervals")]
    lines += ["Bars: 95 % intervals; grey: the noise floor.", ""] if "contrasts.png" in drawn else []
    return [*lines, *_progress(study), "", "## Checks", "", *_checks(checks), ""]


def sentence(study: Study, one: Judged, unit: str) -> str:
    """The result of a contrast in one sentence."""
    (first, second, budget), outcome = one.contrast, one.outcome
    under, n_seeds = f"at {BUDGETS[budget]}", len(study.spec.seeds)
    if one.reasons:
        more = f" (and {len(one.reasons) - 1} more)" if len(one.reasons) > 1 else ""
        return f"**{first} and {second} can't be compared** {under}: {one.reasons[0]}{more}."
    if outcome is None:
        first_has, second_has = (len(study.tested(budget, arm)) for arm in (first, second))
        done = f"{first} has {first_has} and {second} has {second_has} of {n_seeds} tested runs"
        return f"**{first} against {second}** {under}: not known yet; {done}."
    of = f"{len(outcome.seeds)} of " if len(outcome.seeds) < n_seeds else ""
    basis = f"{of}{counted(max(n_seeds, len(outcome.seeds)), 'seed')}, {counted(outcome.documents, 'document')}"
    size, interval = number(abs(outcome.estimate)), outcome.interval
    certainty = "no interval from a single seed"
    if interval is not None:
        certainty = f"95 % interval {ranged(interval.low, interval.high)}"
    if one.verdict == "tie":
        return (
            f"**{first} and {second} are a tie** {under}: they differ by {size} {unit}, the noise floor is "
            f"{number(one.floor)} ({certainty}; {basis})."
        )
    if interval is not None:
        p = probability(one.p)
        certainty += f", p {p if p.startswith('<') else f'= {p}'} after Holm"
    found = f"{signed(outcome.estimate)} {unit} ({certainty}; {basis})"
    if one.verdict is None:
        return f"**{first} against {second}** {under}: {found}; no verdict before the noise floor is known."
    if one.verdict == "undecided":
        return f"**{first} against {second} is undecided** {under}: {found}."
    return f"**{first} is {one.verdict} than {second}** by {size} {unit} {under} ({certainty}; {basis})."


def _noise_floor(study: Study, unit: str) -> str:
    floor, n, runs = usable_floor(study), len(study.spec.seeds), study.tested(NOISE)
    if floor is None:
        return "Noise floor: not known yet; it takes two or more tested runs of one arm that differ only by their seed."
    return (
        f"Noise floor: {floor.runs} runs of {runs['arm'].iloc[0]} have a standard deviation of "
        f"{number(floor.deviation, 5)} {unit}. Two equal arms with {counted(n, 'seed')} each differ by more "
        f"than {number(floor.smallest(n))} in one study of twenty; a smaller difference is called a tie "
        f"(runs {run_names(runs)}).{_unsteady(study, floor)}"
    )


def _unsteady(study: Study, floor: NoiseFloor) -> str:
    """The arms that vary far more than the runs for the noise floor, for which it is too low."""
    spreads = {arm: tables.spread(runs) for arm, runs in study.first_finals().items()}
    unsteady = [f"{arm} ({number(own)})" for arm, own in spreads.items() if own and own > 2 * floor.deviation]
    if not unsteady:
        return ""
    return (
        f" These arms vary more than twice as much over their own seeds, so chance alone makes larger differences than "
        f"the floor: {', '.join(unsteady)}."
    )


def _progress(study: Study) -> list[str]:
    runs, failed = study.recorded, study.failed
    missing = list(study.runs.index[study.runs["state"] == "missing"])
    waiting = [arm for arm in study.spec.arms if any(trial.loss is None for trial in study.trials(arm))]
    more = f" More will follow, once a learning rate is chosen for {', '.join(waiting)}." if waiting else ""
    done = f"{counted(len(runs), 'run')} done, {len(missing)} missing, {len(failed)} failed.{more}"
    lines = [f"{done} {'To continue' if missing or failed else 'To repeat'}: `{study.command}`"]
    for kind in ("commit", "device"):
        counts = Counter(map(str, runs.get(kind, [])))
        if len(counts) > 1:
            listed = ", ".join(f"{value} ({counted(n, 'run')})" for value, n in sorted(counts.items()))
            lines += ["", f"The runs come from several {kind}s: {listed}."]
    if failed:
        lines += ["", "Failed:", "", *(_failure(run, failed[run]) for run in sorted(failed))]
    for arm in waiting:
        names = [f"`{name}`" for name in _obstacles(study, arm)]
        if names:
            tried = f"before these have been tried again: {', '.join(names)}."
            lines += ["", f"No learning rate can be chosen for {arm} {tried}"]
    if missing:
        names = [f"- `{run}`" for run in missing]
        lines += ["", "<details><summary>Missing</summary>", "", *names, "", "</details>"]
    return lines


def _obstacles(study: Study, arm: str) -> list[str]:
    """The failed runs without which no learning rate can be chosen for an arm."""
    runs = study.of_use(RATE, arm)
    undecided = {trial.learning_rate for trial in study.trials(arm) if trial.loss is None}
    is_obstacle = runs["learning_rate"].isin(undecided) & runs["outcome"].isna() & (runs["state"] == "failed")
    return list(runs.index[is_obstacle])


def _failure(run: str, failure: Failure) -> str:
    """A failed run and its error message. Everything else it printed is in its log."""
    lines = failure.last_words.splitlines() or ["it said nothing"]
    words = next((line for line in lines if ": error: " in line), lines[-1])
    return f"- `{run}` {'diverged' if failure.is_diverged else 'failed'}: {words}"


def _checks(checks: Sequence[Check]) -> list[str]:
    lines = []
    for one in checks:
        mark = "✗" if one.findings else "✓" if one.unchecked is None else "?"
        lines.append(f"- {mark} {one.title}{'' if one.unchecked is None else f': {one.unchecked}'}")
        for finding in one.findings[:_SHOWN_FINDINGS]:
            lines.append(f"  - {finding.text}{f' (at {BUDGETS[finding.budget]})' if finding.budget else ''}")
        if len(one.findings) > _SHOWN_FINDINGS:
            lines.append(f"  - and {len(one.findings) - _SHOWN_FINDINGS} more")
    if any(finding.arms for one in checks for finding in one.findings):
        lines += ["", "Arms whose runs are named here are not compared with others until this is fixed."]
    return lines


def _cost(study: Study, drawn: Collection[str]) -> list[str]:
    """The loss over FLOPs and seconds."""
    shown = image(drawn, "cost.png", "Validation loss over FLOPs and seconds")
    if not shown:
        return []
    others = {budget for _, budget in study.finals} - {study.spec.budgets[0]}
    hollow = "; hollow: where the runs at equal FLOPs or seconds ended" if others & {"flops", "seconds"} else ""
    return ["## Loss over cost", "", *shown, f"Bands reach from the lowest to the highest seed{hollow}.", ""]
