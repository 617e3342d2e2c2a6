"""The report of a comparison, made from its records alone: `report.md`, CSV files and plots."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from llp.atomic_files import write_whole
from llp.comparison import contrasts, plots, tables
from llp.comparison.checks import Check, check
from llp.comparison.contrasts import Judged, usable_floor
from llp.comparison.plan import Plan
from llp.comparison.records import Failure
from llp.comparison.tables import BUDGETS, counted, image, number, probability, ranged

_FEW_DOCUMENTS = 10
_SHOWN_FINDINGS = 5


class Report:
    """What the records say: the same ones give the same report, to the byte.

    Whatever isn't there yet is named in it; without any record there is a report, too.

    Args:
        plan: The plan, with what is known of its runs.
        command: The command that continues the comparison.
    """

    def __init__(self, plan: Plan, command: str) -> None:
        self.checks = check(plan)
        self.named = contrasts.named(plan, self.checks)
        self.exploratory = contrasts.exploratory(plan, self.checks)
        unit = next(iter(plan.recorded["unit"].dropna()), "bits per byte")
        self.found = _found(plan, self.named, unit)
        self.summary, self.runs = tables.summary(plan, unit), tables.listed_runs(plan)
        self.plots = plots.draw_all(plan, [*self.named, *self.exploratory], unit)
        reach = [
            *image(self.plots, "position.png", "Loss by position in the window"),
            *image(self.plots, "recall.png", "Loss on recall tokens by distance"),
            *image(self.plots, "accuracy.png", "Accuracy by distance"),
        ]
        cost = image(self.plots, "cost.png", "Validation loss over FLOPs and seconds")
        bands = "Bands reach from the lowest to the highest seed; hollow: where runs at equal FLOPs or seconds ended."
        lines = [
            *[f"# {plan.spec.name}", "", plan.spec.description, "", "How to read this report: docs/comparison.md."],
            *["", "## What was found", "", *self.found, ""],
            *image(self.plots, "contrasts.png", "Differences with their 95 % intervals; grey: the noise floor"),
            *_progress(plan, command),
            *["", "## Checks", "", *_checks(self.checks), ""],
            *tables.results(plan, self.summary, unit),
            *tables.contrasts(self.named, self.exploratory, unit),
            *(["## Loss over cost", "", *cost, bands, ""] if cost else []),
            *(["## How far back the models read", "", *reach] if reach else []),
            *tables.learning_rates(plan, unit),
            *tables.scoring(plan),
            "All runs, each with the commands that repeat it: [runs.csv](runs.csv).",
        ]
        self.text = "\n".join(lines) + "\n"

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
            write_whole(folder / name, text)
        for name, figure in self.plots.items():
            plots.save(figure, folder / name)
        return [folder / name for name in [*texts, *self.plots]]


def _found(plan: Plan, named: Sequence[Judged], unit: str) -> list[str]:
    """A sentence for each contrast named before the runs, and the noise floor."""
    lines = [f"- {sentence(plan, one, unit)}" for one in named] or ["No contrast was named before the runs."]
    n_documents = min((one.outcome.documents for one in named if one.outcome is not None), default=_FEW_DOCUMENTS)
    if n_documents == 1:
        alone = "the intervals are over seeds alone, as if there were no other text."
        lines += ["", f"The test counts as a single document: {alone}"]
    elif n_documents < _FEW_DOCUMENTS:
        hardly = "the intervals say little about how much other texts would differ."
        lines += ["", f"The test has only {n_documents} documents: {hardly}"]
    return [*lines, "", _noise_floor(plan, unit)]


def sentence(plan: Plan, one: Judged, unit: str) -> str:
    """The result of a contrast in one sentence."""
    (first, second, budget), outcome = one.contrast, one.outcome
    under, n_seeds = f"at {BUDGETS[budget]}", len(plan.spec.seeds)
    if one.reasons:
        more = f" (and {len(one.reasons) - 1} more)" if len(one.reasons) > 1 else ""
        return f"**{first} and {second} can't be compared** {under}: {one.reasons[0]}{more}."
    if outcome is None:
        first_has, second_has = (len(plan.tested(budget, arm)) for arm in (first, second))
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
    found = f"{outcome.estimate:+.4f} {unit} ({certainty}; {basis})"
    if one.verdict is None:
        return f"**{first} against {second}** {under}: {found}; no verdict before the noise floor is known."
    if one.verdict == "undecided":
        return f"**{first} against {second} is undecided** {under}: {found}."
    return f"**{first} is {one.verdict} than {second}** by {size} {unit} {under} ({certainty}; {basis})."


def _noise_floor(plan: Plan, unit: str) -> str:
    """The noise floor, and the arms that vary so much that it is too low for them."""
    floor, n = usable_floor(plan), len(plan.spec.seeds)
    if plan.spec.steps == 0:
        return "Nothing was trained, so there is no noise floor, and the intervals are over documents alone."
    if floor is None:
        return f"Noise floor: not known yet; it takes two or more tested runs of {plan.spec.reference}, none diverged."
    text = (
        f"Noise floor: {floor.runs} runs of {plan.spec.reference} have a standard deviation of "
        f"{number(floor.deviation, 5)} {unit}. Two equal arms with {counted(n, 'seed')} each differ by more than "
        f"{number(floor.smallest(n))} in one study of twenty; a smaller difference is called a tie."
    )
    spreads = {arm: tables.spread(runs) for arm, runs in plan.first_finals().items()}
    unsteady = [f"{arm} ({number(own)})" for arm, own in spreads.items() if own and own > 2 * floor.deviation]
    if unsteady:
        text += (
            " These arms vary more than twice as much over their own seeds, so chance alone makes larger differences "
            f"than the floor: {', '.join(unsteady)}."
        )
    return text


def _progress(plan: Plan, command: str) -> list[str]:
    runs, states = plan.recorded, plan.table["state"]
    failed, n_missing = sorted(states.index[states == "failed"]), int((states == "missing").sum())
    waiting = [arm for arm in plan.spec.arms if any(trial.loss is None for trial in plan.trials(arm))]
    more = f" More will follow, once a learning rate is chosen for {', '.join(waiting)}." if waiting else ""
    done = f"{counted(len(runs), 'run')} done, {n_missing} missing, {len(failed)} failed.{more}"
    lines = [f"{done} {'To continue' if n_missing or failed else 'To repeat'}: `{command}`"]
    for kind in ("commit", "device"):
        counts = Counter(map(str, runs[kind]))
        if len(counts) > 1:
            listed = ", ".join(f"{value} ({counted(n, 'run')})" for value, n in sorted(counts.items()))
            lines += ["", f"The runs come from several {kind}s: {listed}."]
    if failed:
        lines += ["", "Failed:", "", *(_failure(run, plan.failed[run]) for run in failed)]
    return lines


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
    if any(one.findings for one in checks):
        lines += ["", "Arms whose runs are named here are not compared with others until this is fixed."]
    return lines
