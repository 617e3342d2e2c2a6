"""Whether runs may be compared: what a comparison holds equal is read off its records instead of being trusted."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any, NamedTuple

import pandas as pd

from llp.comparison.statistics import scored_count
from llp.comparison.study import NOISE, Contrast, Study, Trial, best_trial

_BUDGET_TOLERANCE = 0.01
_SCORING = ("window_len", "stride", "data_fingerprint", "tokenizer_fingerprint")
_SCHEDULE = {
    "steps": "steps",
    "warm-up": "model.warmup_steps",
    "schedule": "model.schedule",
    "last learning rate": "model.final_learning_rate",
    "windows per step": "windows_per_step",
}


class Finding(NamedTuple):
    """A violation of a condition."""

    text: str
    arms: frozenset[str]
    """The arms whose differences to others mean nothing."""
    budget: str | None = None
    """The budget concerned; None for all."""


class Check(NamedTuple):
    """A condition and its violations."""

    title: str
    findings: list[Finding]
    unchecked: str | None = None
    """Why the records don't show, or don't all show, whether the condition holds; None if they do."""


def check(study: Study) -> list[Check]:
    """All conditions of a comparison. Where values differ, the rarer one is taken to be wrong."""
    runs = study.recorded
    tested = runs[runs["test"].notna()]
    finals = study.finals
    odd = _Odd(study.spec.reference)
    all_finals = pd.concat([*finals.values(), tested.head(0)])
    all_finals = all_finals[~all_finals.index.duplicated()]
    at_equal_windows = pd.concat(
        [runs.head(0), *(group for (_, budget), group in finals.items() if budget == "windows")]
    )
    at_equal_windows = at_equal_windows.assign(windows_per_step=at_equal_windows["windows"] / at_equal_windows["steps"])
    trials = {arm: study.trials(arm) for arm in study.spec.arms}
    n_tried = {arm: sum(trial.loss is not None for trial in own) for arm, own in trials.items()}
    noise = study.tested(NOISE)
    return [
        _check(
            "All were scored with one window, one stride, one tokenizer, on one data set",
            _unequal(odd, tested, {name: f"protocol.{name}" for name in _SCORING}),
            len(tested) > 1,
        ),
        _check("All were scored on the same documents, completely", _documents(odd, tested), len(tested) > 1),
        _check("No test loss is infinite", _infinite(tested), len(tested) > 0),
        _check("The certificate of causality was passed by all", _certificate(tested), len(tested) > 0),
        _check(
            "Runs of one seed and length took the same training windows, other seeds others",
            _windows(odd, runs),
            _has_groups(runs, ["windows", "data.window_len"]),
        ),
        _first_windows(odd, runs),
        _check(
            "All read the same text with the same tokenizer",
            _unequal(odd, runs, {"data": "hashes.data", "tokenizer": "hashes.tokenizer"}),
            len(runs) > 1,
        ),
        _check(
            "Runs of one seed and size began with the same weights",
            [
                _finding(run, f"other initial weights than other runs of seed {run['seed']}")
                for group in _groups(runs, ["seed", "size"])
                for run, _, _ in odd(group, "hashes.initial_weights")
            ],
            _has_groups(runs, ["seed", "size"]),
        ),
        _check(
            "All have the same number of parameters (V3's map apart)",
            [_finding(run, f"{own:,} parameters, others {usual:,}") for run, own, usual in odd(all_finals, "size")],
            all_finals["arm"].nunique() > 1,
        ),
        _check(
            "All tried the same learning rates, more only where the best one lay at the edge",
            _grids(trials),
            sum(n > 0 for n in n_tried.values()) > 1,
        ),
        _edges(trials),
        _check(
            "The learning rate of each is the best one of those tried, on validation",
            _chosen(study, finals),
            any(n_tried[arm] > 1 for arm, _ in finals),
        ),
        _check(
            "All had the same schedule under equal windows",
            [
                _finding(run, f"{name}: {own}, others {usual}", "windows")
                for name, column in _SCHEDULE.items()
                for run, own, usual in odd(at_equal_windows, column)
            ],
            at_equal_windows["arm"].nunique() > 1,
        ),
        _check(
            "Each budget was kept within 1 %",
            _budgets(study, finals),
            len({arm for arm, budget in finals if _allowed(study, finals, budget)}) > 1,
        ),
        _check("The runs for the noise floor differ by their seed alone", noise_findings(study), len(noise) > 1),
    ]


def reasons(checks: Sequence[Check], contrast: Contrast) -> list[str]:
    """Why two arms can't be compared under a budget; empty if they can."""
    return [
        finding.text
        for finding in chain.from_iterable(check.findings for check in checks)
        if finding.arms & {contrast.first, contrast.second} and finding.budget in (None, contrast.budget)
    ]


def noise_findings(study: Study) -> list[Finding]:
    """Runs for the noise floor that differ by more than their seed: they affect no contrast, but the noise floor."""
    noise = study.tested(NOISE)
    columns = ["arm", "learning_rate", "steps", "windows", "parameters", "document_sizes"]
    alike = noise.assign(all_but_seed=list(zip(*(noise[column] for column in columns), strict=True)))
    findings = [
        _finding(run, "it differs by more than its seed")
        for run, _, _ in _Odd(study.spec.reference)(alike, "all_but_seed")
    ]
    findings += _infinite(noise)
    findings += [
        _finding(run, f"another run has seed {run['seed']} too")
        for _, run in noise[noise["seed"].duplicated(keep=False)].iterrows()
    ]
    return [finding._replace(arms=frozenset()) for finding in findings]


def _check(title: str, findings: list[Finding], is_possible: bool) -> Check:
    return Check(title, findings, None if is_possible or findings else "nothing to check")


def _finding(run: pd.Series, text: str, budget: str | None = None) -> Finding:
    return Finding(f"{run.name}: {text}", frozenset([run["arm"]]), budget)


class _Odd:
    """Finds the runs whose value is not the most frequent one; of equally frequent ones the reference's counts."""

    def __init__(self, reference: str) -> None:
        self.reference = reference

    def __call__(self, runs: pd.DataFrame, column: str) -> list[tuple[pd.Series, Any, Any]]:
        """Each such run, its value, and the most frequent one."""
        values = list(runs.get(column, [None] * len(runs)))
        counts = Counter(values)
        of_reference = {value for value, arm in zip(values, runs["arm"], strict=True) if arm == self.reference}
        usual = max(counts, key=lambda value: (counts[value], value in of_reference), default=None)
        return [(runs.iloc[number], value, usual) for number, value in enumerate(values) if value != usual]


def _groups(runs: pd.DataFrame, columns: list[str]) -> list[pd.DataFrame]:
    """The runs that have the same values in these columns, in order of appearance."""
    known = [column for column in columns if column in runs]
    return [group for _, group in runs.groupby(known, sort=False, dropna=False)] if len(runs) else []


def _has_groups(runs: pd.DataFrame, columns: list[str]) -> bool:
    return any(len(group) > 1 for group in _groups(runs, columns))


def _unequal(odd: _Odd, runs: pd.DataFrame, columns: dict[str, str]) -> list[Finding]:
    """Runs that differ from most in a column, by the names of the columns in the findings."""
    return [
        _finding(run, f"{name} is {_short(own)}, that of others {_short(usual)}")
        for name, column in columns.items()
        for run, own, usual in odd(runs, column)
    ]


def _documents(odd: _Odd, tested: pd.DataFrame) -> list[Finding]:
    findings = []
    for _, run in tested.iterrows():
        whole, documents = run["whole"], run["documents"]
        if not run.get("protocol.complete"):
            findings.append(_finding(run, "not all of the test was scored"))
        if scored_count(whole) != sum(map(scored_count, documents)):
            findings.append(_finding(run, "its documents don't add up to the tokens of the whole test"))
        elif run["is_finite"] and not math.isclose(
            whole["nats"], math.fsum(d["nats"] for d in documents), rel_tol=1e-9
        ):
            findings.append(_finding(run, "its documents don't add up to the loss of the whole test"))
    for run, own, usual in odd(tested, "document_sizes"):
        missing, unknown = ({*usual} - {*own}, {*own} - {*usual})
        counts = {"missing": len(missing), "unknown": len(unknown)}
        what = ", ".join(f"{n} {word}" for word, n in counts.items() if n) or "in another order"
        findings.append(_finding(run, f"other documents than the others' {len(usual)} ({what})"))
    return findings


def _infinite(tested: pd.DataFrame) -> list[Finding]:
    return [
        _finding(run, "it diverged: its test loss is infinite") for _, run in tested.iterrows() if not run["is_finite"]
    ]


def _certificate(tested: pd.DataFrame) -> list[Finding]:
    certificates = [(run, run.get("protocol.certificate")) for _, run in tested.iterrows()]
    return [
        _finding(run, "it was not probed for reading the tokens that it predicts")
        for run, certificate in certificates
        if not (isinstance(certificate, dict) and certificate.get("causal") is True)
    ]


def _windows(odd: _Odd, runs: pd.DataFrame) -> list[Finding]:
    findings = []
    for group in _groups(runs, ["windows", "data.window_len"]):
        first_seed: dict[str, int] = {}  # with these training windows
        for same_seed in _groups(group.sort_values("seed", kind="stable"), ["seed"]):
            wrong = {run.name for run, _, _ in odd(same_seed, "hashes.training_windows")}
            for _, run in same_seed.iterrows():
                seed, digest = run["seed"], run["hashes.training_windows"]
                if run.name in wrong:
                    findings.append(_finding(run, f"other training windows than other runs of seed {seed}"))
                elif (first := first_seed.setdefault(digest, seed)) != seed:
                    findings.append(_finding(run, f"its training windows are those of seed {first} too"))
    return findings


def _first_windows(odd: _Odd, runs: pd.DataFrame) -> Check:
    """Runs of unequal length, under other budgets, are compared as far as both went."""
    title = "Runs of one seed and unequal length took the same first training windows"
    unequal = [group for group in _groups(runs, ["seed", "data.window_len"]) if group["windows"].nunique() > 1]
    if not unequal:
        return _check(title, [], is_possible=False)
    matches = (re.fullmatch(r"hashes\.first_(\d+)_batches", column) for column in runs)
    columns = {int(match[1]): match[0] for match in matches if match}
    findings: dict[str, Finding] = {}
    for group in unequal:
        for n, column in sorted(columns.items()):
            for run, _, _ in odd(group[group[column].notna()], column):
                text = f"within its first {n:,} batches other training windows than other runs of seed {run['seed']}"
                findings.setdefault(run.name, _finding(run, text))
    everything = pd.concat(unequal)
    lacking = everything.reindex(columns=list(columns.values())).isna().all(axis=1).sum()
    unchecked = f"{lacking} of {len(everything)} runs have no digest of their first windows in their records"
    return Check(title, list(findings.values()), unchecked if lacking else None)


def _grids(grids: dict[str, list[Trial]]) -> list[Finding]:
    rates = {arm: [trial.learning_rate for trial in trials] for arm, trials in grids.items()}
    if not any(rates.values()):
        return []
    common = sorted(set.intersection(*map(set, rates.values())))
    if not common:
        listed = ", ".join(f"{arm}: {_listed(own)}" for arm, own in rates.items())
        return [Finding(f"no learning rate was tried for all ({listed})", frozenset(grids))]
    findings = []
    for arm, trials in grids.items():
        unexplained = [
            t.learning_rate for t in trials if t.learning_rate not in common and not _is_extension(t, trials, common)
        ]
        if unexplained:
            text = f"{arm}: {_listed(unexplained)} was tried beside the common {_listed(common)} without need"
            findings.append(Finding(text, frozenset([arm])))
    return findings


def _is_extension(trial: Trial, trials: Sequence[Trial], common: Sequence[float]) -> bool:
    """Whether a trial beyond the common rates followed a best one at their edge, or at that of earlier extensions."""
    rate = trial.learning_rate
    if common[0] <= rate <= common[-1]:
        return False
    is_higher = rate > common[-1]
    inside = [t for t in trials if (t.learning_rate < rate if is_higher else t.learning_rate > rate)]
    best = best_trial(inside)
    return best is None or best is inside[-1 if is_higher else 0]


def _edges(trials: dict[str, list[Trial]]) -> Check:
    """A warning: a best rate at the edge may not be the best that there is. It doesn't prevent a comparison."""
    findings = []
    grids = {arm: own for arm, own in trials.items() if len(own) > 1}
    complete = {arm: own for arm, own in grids.items() if all(trial.loss is not None for trial in own)}
    for arm, own in complete.items():
        best = best_trial(own)
        if best is not None and best in (own[0], own[-1]):
            end = "lowest" if best is own[0] else "highest"
            text = f"{arm}: {best.learning_rate:g} is the {end} rate that was tried; one beyond it may be better"
            findings.append(Finding(text, frozenset()))
    return _check("No chosen learning rate lies at the edge of those tried", findings, bool(complete))


def _chosen(study: Study, finals: dict[tuple[str, str], pd.DataFrame]) -> list[Finding]:
    findings = []
    for (arm, budget), runs in finals.items():
        best = best_trial(study.trials(arm))
        for _, run in runs.iterrows():
            if best is not None and run["learning_rate"] != best.learning_rate:
                text = f"learning rate {run['learning_rate']:g}, the best one tried is {best.learning_rate:g}"
                findings.append(_finding(run, text, budget))
    return findings


def _allowed(study: Study, finals: dict[tuple[str, str], pd.DataFrame], budget: str) -> float | None:
    """What the reference used of a budget; None if unknown."""
    reference = finals.get((study.spec.reference, budget))
    return None if reference is None else study.spent(reference.iloc[0], budget)


def _budgets(study: Study, finals: dict[tuple[str, str], pd.DataFrame]) -> list[Finding]:
    findings = []
    for (_, budget), runs in finals.items():
        allowed = _allowed(study, finals, budget)
        for _, run in runs.iterrows():
            used = study.spent(run, budget)
            if allowed and used is not None and abs(used / allowed - 1) > _BUDGET_TOLERANCE:
                text = f"{used / allowed:.1%} of the {budget} of {study.spec.reference}"
                findings.append(_finding(run, text, budget))
    return findings


def _listed(rates: Iterable[float]) -> str:
    return ", ".join(f"{rate:g}" for rate in rates)


def _short(value: Any) -> str:
    """A value, or the beginning of a digest."""
    return f"{value[:8]}…" if isinstance(value, str) and len(value) > 12 else str(value)
