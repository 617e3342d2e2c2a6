"""Whether runs may be compared: what a comparison holds equal is read off its records instead of being trusted."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd

from llp.comparison.plan import Plan
from llp.comparison.records import Contrast

_BUDGET_TOLERANCE = 0.01


class Finding(NamedTuple):
    """A violation of a condition."""

    text: str
    arm: str
    """The arm whose differences to others mean nothing."""
    budget: str | None = None
    """The budget concerned; None for all."""


class Check(NamedTuple):
    """A condition and its violations."""

    title: str
    findings: list[Finding]
    unchecked: str | None = None
    """Why the records don't show, or don't all show, whether the condition holds; None if they do."""


def check(plan: Plan) -> list[Check]:
    """All conditions of a comparison. Where values differ, the rarer one is taken to be wrong."""
    runs = plan.recorded
    tested = runs[runs["test"].notna()]
    first_batches = [column for column in runs.columns if column.startswith("hashes.first_")]

    def equal(
        title: str, runs: pd.DataFrame, columns: Sequence[str], within: Sequence[str] = (), unchecked: str = ""
    ) -> Check:
        """Runs that have the same values in `within` must have equal values in each of the columns."""
        groups = _groups(runs, within)
        findings = [
            _finding(run, f"{_name(column)} {_short(own)}, others {_short(usual)}")
            for column in columns
            for group in groups
            for run, own, usual in _odd(group.dropna(subset=[column]), column, plan.spec.reference)
        ]
        nothing = "" if any(len(group) > 1 for group in groups) else "nothing to check"
        return Check(title, findings, None if findings else nothing or unchecked or None)

    def holds(title: str, column: str, problem: str) -> Check:
        """Each tested run must have a true value."""
        wrong = [_finding(run, problem) for _, run in tested.iterrows() if run[column] is not True]
        return Check(title, wrong, None if len(tested) else "nothing to check")

    lacking = len(runs) if not first_batches else int(runs[first_batches].isna().all(axis=1).sum())
    lack = f"{lacking} of {len(runs)} runs have no digest of their first windows in their records" if lacking else ""
    scored = [f"protocol.{name}" for name in ("window_len", "stride", "data_fingerprint", "tokenizer_fingerprint")]
    same_windows, same_first = (
        "Runs of one seed and length took the same training windows",
        "Runs of one seed took the same first training windows, as far as both went",
    )
    not_probed = "it was not probed for reading the tokens that it predicts"
    return [
        equal("All were scored with one window, one stride, one tokenizer, on one data set", tested, scored),
        equal("All were scored on the same documents", tested, ["document_sizes"]),
        holds("All were scored completely", "is_complete", "not all of the test was scored"),
        holds("No test loss is infinite", "is_finite", "it diverged: its test loss is infinite"),
        holds("The certificate of causality was passed by all", "is_causal", not_probed),
        equal(same_windows, runs, ["hashes.training_windows"], ["seed", "windows", "data.window_len"]),
        equal(same_first, runs, first_batches, ["seed", "data.window_len"], lack),
        Check("Runs of different seeds took different training windows", _shared_windows(runs), _few(runs, "seed")),
        equal("All read the same text with the same tokenizer", runs, ["hashes.data", "hashes.tokenizer"]),
        equal(
            "Runs of one seed and size began with the same weights", runs, ["hashes.initial_weights"], ["seed", "size"]
        ),
        equal("All have the same number of parameters (V3's map apart)", tested, ["size"]),
        Check("Each budget was kept within 1 %", _budgets(plan), _few(tested, "arm")),
    ]


_NAMES = {"window_len": "window length", "document_sizes": "documents", "data": "text", "size": "parameters"}


def _name(column: str) -> str:
    """A column as a finding names it: `hashes.first_64_batches` as `first 64 batches`."""
    name = column.rpartition(".")[2]
    return _NAMES.get(name, name.removesuffix("_fingerprint").replace("_", " "))


def reasons(checks: Sequence[Check], contrast: Contrast) -> list[str]:
    """Why two arms can't be compared under a budget; empty if they can."""
    return [
        finding.text
        for one in checks
        for finding in one.findings
        if finding.arm in (contrast.first, contrast.second) and finding.budget in (None, contrast.budget)
    ]


def _finding(run: pd.Series, text: str, budget: str | None = None) -> Finding:
    return Finding(f"{run.name}: {text}", run["arm"], budget)


def _few(runs: pd.DataFrame, column: str) -> str | None:
    return None if runs[column].nunique() > 1 else "nothing to check"


def _groups(runs: pd.DataFrame, within: Sequence[str]) -> list[pd.DataFrame]:
    """The runs that have the same values in these columns."""
    if runs.empty or not within:
        return [runs]
    return [group for _, group in runs.groupby(list(within), sort=False, dropna=False)]


def _odd(runs: pd.DataFrame, column: str, reference: str) -> list[tuple[pd.Series, Any, Any]]:
    """The runs whose value is not the most frequent one, with both; of equally frequent ones the reference's counts."""
    values = list(runs[column])
    counts = Counter(values)
    of_reference = {value for value, arm in zip(values, runs["arm"], strict=True) if arm == reference}
    usual = max(counts, key=lambda value: (counts[value], value in of_reference), default=None)
    return [(runs.iloc[number], value, usual) for number, value in enumerate(values) if value != usual]


def _shared_windows(runs: pd.DataFrame) -> list[Finding]:
    findings = []
    for group in _groups(runs, ["hashes.training_windows"]):
        others = group[group["seed"] != group["seed"].min()]
        text = f"its training windows are those of seed {group['seed'].min()} too"
        findings += [_finding(run, text) for _, run in others.iterrows()]
    return findings


def _budgets(plan: Plan) -> list[Finding]:
    findings = []
    for (_, budget), runs in plan.finals.items():
        reference = plan.finals.get((plan.spec.reference, budget))
        allowed = None if reference is None else plan.spent(reference.iloc[0], budget)
        for _, run in runs.iterrows():
            used = plan.spent(run, budget)
            if allowed and used is not None and abs(used / allowed - 1) > _BUDGET_TOLERANCE:
                text = f"{used / allowed:.1%} of the {budget} of {plan.spec.reference}"
                findings.append(_finding(run, text, budget))
    return findings


def _short(value: Any) -> str:
    """A value, or the beginning of a digest."""
    return f"{value[:8]}…" if isinstance(value, str) and len(value) > 12 else str(value)
