"""The first screen of a report: what was found, how far the runs are, and whether they may be compared."""

from collections import Counter
from collections.abc import Collection, Sequence

from llp.comparison.checks import Check, all_runs
from llp.comparison.figures import spread_of
from llp.comparison.judgement import Judged, usable_floor
from llp.comparison.markdown import BUDGETS, counted, image, number, probability, run_names, signed
from llp.comparison.statistics import NoiseFloor
from llp.comparison.study import Failure, Study

_FEW_DOCUMENTS = 10
_SHOWN_FINDINGS = 5


def opening(
    study: Study, checks: Sequence[Check], named: Sequence[Judged], unit: str, drawn: Collection[str]
) -> list[str]:
    """Name, description, a sentence for each contrast that was named before the runs, noise floor, state and checks."""
    lines = [f"# {study.name}", "", study.description, "", "How to read this report: docs/comparison.md.", ""]
    lines += ["## What was found", ""]
    lines += [f"- {sentence(study, one, unit)}" for one in named] or ["No contrast was named before the runs."]
    n_documents = min((one.outcome.documents for one in named if one.outcome is not None), default=None)
    if n_documents is not None and n_documents < _FEW_DOCUMENTS:
        lines += ["", _few_documents(n_documents)]
    lines += ["", _floor_text(study, unit), "", *image(drawn, "contrasts.png", "Differences with their intervals")]
    lines += ["Bars: 95 % intervals; grey: the noise floor.", ""] if "contrasts.png" in drawn else []
    lines += [*_state(study), "", "## Checks", ""]
    return [*lines, *_check_lines(checks), ""]


def _few_documents(n: int) -> str:
    if n == 1:
        return (
            "The test counts as a single document: the intervals are over seeds alone, as if there were no other text."
        )
    return f"The test has {n} documents only: the intervals can hardly know how much other texts would differ."


def sentence(study: Study, one: Judged, unit: str) -> str:
    """What came of a contrast, in one sentence."""
    (first, second, budget), outcome = one.contrast, one.outcome
    under = f"at {BUDGETS[budget]}"
    if one.reasons:
        more = f" (and {len(one.reasons) - 1} more)" if len(one.reasons) > 1 else ""
        return f"**{first} and {second} can't be compared** {under}: {one.reasons[0]}{more}."
    if outcome is None:
        first_has, second_has = (len(study.finals.get((arm, budget), [])) for arm in (first, second))
        done = f"{first} has {first_has} and {second} has {second_has} of {len(study.seeds)} tested runs"
        return f"**{first} against {second}** {under}: not known yet; {done}."
    of = f"{len(outcome.seeds)} of " if len(outcome.seeds) < len(study.seeds) else ""
    basis = (
        f"{of}{counted(max(len(study.seeds), len(outcome.seeds)), 'seed')}, {counted(outcome.documents, 'document')}"
    )
    size, interval = number(abs(outcome.estimate)), outcome.interval
    sure = "no interval from a single seed"
    if interval is not None:
        sure = f"95 % interval {signed(interval.low)} to {signed(interval.high)}"
    if one.verdict == "tie":
        return (
            f"**{first} and {second} are a tie** {under}: they differ by {size} {unit}, the noise floor is "
            f"{number(one.floor)} ({sure}; {basis})."
        )
    if interval is not None:
        sure += f", p {_equal(one.p)} after Holm"
    found = f"{signed(outcome.estimate)} {unit} ({sure}; {basis})"
    if one.verdict is None:
        return f"**{first} against {second}** {under}: {found}; no verdict before the noise floor is known."
    if one.verdict == "undecided":
        return f"**{first} against {second} is undecided** {under}: {found}."
    return f"**{first} is {one.verdict} than {second}** by {size} {unit} {under} ({sure}; {basis})."


def _equal(p: float | None) -> str:
    text = probability(p)
    return text if text.startswith("<") else f"= {text}"


def _floor_text(study: Study, unit: str) -> str:
    floor, n = usable_floor(study), len(study.seeds)
    if floor is None:
        return (
            "Noise floor: not known yet; it takes two or more tested runs of one arm that differ by their seed alone."
        )
    arm = study.noise[0].arm
    text = f"Noise floor: {floor.runs} runs of {arm} have a standard deviation of {number(floor.deviation, 5)} {unit}"
    if n:
        text += (
            f". Two equal contestants with {counted(n, 'seed')} each differ by more than "
            f"{number(floor.smallest(n, n))} in one study of twenty; what is less is called a tie"
        )
    return f"{text} (runs {run_names(study.noise)}).{_unsteady(study, floor)}"


def _unsteady(study: Study, floor: NoiseFloor) -> str:
    """Which contestants vary far more than the runs that the noise floor is from: for them it says too little."""
    spreads = {arm: spread_of(records) for arm, records in study.first_finals.items()}
    unsteady = [
        f"{arm} ({number(spread)})" for arm, spread in spreads.items() if spread and spread > 2 * floor.deviation
    ]
    if not unsteady:
        return ""
    return (
        f" Over their own seeds these vary more than twice as much, so that chance alone makes larger differences than "
        f"the floor: {', '.join(unsteady)}."
    )


def _state(study: Study) -> list[str]:
    runs = all_runs(study)
    what = "To continue" if study.missing or study.failed else "To repeat"
    done = f"{counted(len(runs), 'run')} done, {len(study.missing)} missing, {len(study.failed)} failed."
    lines = [f"{done}{_more(study)} {what}: `{study.command}`"]
    for kind, values in (("commits", [run.commit for run in runs]), ("devices", [run.device for run in runs])):
        counts = Counter(map(str, values))
        if len(counts) > 1:
            listed = ", ".join(f"{value} ({counted(n, 'run')})" for value, n in sorted(counts.items()))
            lines += ["", f"The runs come from several {kind}: {listed}."]
    if study.failed:
        lines += ["", "Failed:", "", *(_failure_line(run, study.failed[run]) for run in sorted(study.failed))]
    for arm, names in study.undecided.items():
        failed = ", ".join(f"`{name}`" for name in names)
        lines += ["", f"No learning rate can be chosen for {arm} before these have been tried again: {failed}."]
    if study.missing:
        names = [f"- `{run}`" for run in study.missing]
        lines += ["", "<details><summary>Missing</summary>", "", *names, "", "</details>"]
    return lines


def _more(study: Study) -> str:
    """That runs are still to be planned, where they wait for the choice of a learning rate."""
    waiting = [arm for arm in study.arms if not all(trial.is_done for trial in study.trials.get(arm, []))]
    return f" More will follow, once a learning rate is chosen for {', '.join(waiting)}." if waiting else ""


def _failure_line(run: str, failure: Failure) -> str:
    """A failed run and its error, without what is said around it; all of it is in its log."""
    lines = failure.last_words.splitlines() or ["it said nothing"]
    words = next((line for line in lines if ": error: " in line), lines[-1])
    return f"- `{run}` {'diverged' if failure.is_diverged else 'failed'}: {words}"


def _check_lines(checks: Sequence[Check]) -> list[str]:
    lines = []
    for one in checks:
        mark = "✗" if one.findings else "✓" if one.unchecked is None else "?"
        lines.append(f"- {mark} {one.title}{'' if one.unchecked is None else f': {one.unchecked}'}")
        lines += [f"  - {finding.text}{_under(finding.budget)}" for finding in one.findings[:_SHOWN_FINDINGS]]
        if len(one.findings) > _SHOWN_FINDINGS:
            lines.append(f"  - and {len(one.findings) - _SHOWN_FINDINGS} more")
    if any(finding.arms for one in checks for finding in one.findings):
        lines += ["", "Contestants whose runs are named here are not compared with others until that is mended."]
    return lines


def _under(budget: str | None) -> str:
    return "" if budget is None else f" (at {BUDGETS[budget]})"
