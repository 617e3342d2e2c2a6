"""Whether runs may be compared: what a comparison holds equal is read off its records instead of being trusted."""

from collections import Counter
from collections.abc import Mapping, Sequence
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
    first_batches = {
        column.replace("_", " ").removeprefix("hashes."): column
        for column in runs.columns
        if column.startswith("hashes.first_")
    }

    def equal(
        title: str, runs: pd.DataFrame, columns: Mapping[str, str], within: Sequence[str] = (), unchecked: str = ""
    ) -> Check:
        """Runs of a group must have equal values; `columns` by their names in the findings."""
        groups = _groups(runs, within)
        findings = [
            _finding(run, f"{name} {_short(own)}, others {_short(usual)}")
            for name, column in columns.items()
            for group in groups
            for run, own, usual in _odd(group.dropna(subset=[column]), column, plan.spec.reference)
        ]
        nothing = "" if any(len(group) > 1 for group in groups) else "nothing to check"
        return Check(title, findings, None if findings else nothing or unchecked or None)

    def holds(title: str, column: str, problem: str) -> Check:
        """Each tested run must have a true value."""
        wrong = [_finding(run, problem) for _, run in tested.iterrows() if run[column] is not True]
        return Check(title, wrong, None if len(tested) else "nothing to check")

    lacking = len(runs) if not first_batches else int(runs[list(first_batches.values())].isna().all(axis=1).sum())
    return [
        equal(
            "All were scored with one window, one stride, one tokenizer, on one data set",
            tested,
            {
                "window length": "protocol.window_len",
                "stride": "protocol.stride",
                "data": "protocol.data_fingerprint",
                "tokenizer": "protocol.tokenizer_fingerprint",
            },
        ),
        equal("All were scored on the same documents", tested, {"documents": "document_sizes"}),
        holds("All were scored completely", "is_complete", "not all of the test was scored"),
        holds("No test loss is infinite", "is_finite", "it diverged: its test loss is infinite"),
        holds(
            "The certificate of causality was passed by all",
            "is_causal",
            "it was not probed for reading the tokens that it predicts",
        ),
        equal(
            "Runs of one seed and length took the same training windows",
            runs,
            {"training windows": "hashes.training_windows"},
            ["seed", "windows", "data.window_len"],
        ),
        equal(
            "Runs of one seed took the same first training windows, as far as both went",
            runs,
            first_batches,
            ["seed", "data.window_len"],
            f"{lacking} of {len(runs)} runs have no digest of their first windows in their records" if lacking else "",
        ),
        Check("Runs of different seeds took different training windows", _shared_windows(runs), _few(runs, "seed")),
        equal(
            "All read the same text with the same tokenizer",
            runs,
            {"text": "hashes.data", "tokenizer": "hashes.tokenizer"},
        ),
        equal(
            "Runs of one seed and size began with the same weights",
            runs,
            {"initial weights": "hashes.initial_weights"},
            ["seed", "size"],
        ),
        equal("All have the same number of parameters (V3's map apart)", tested, {"parameters": "size"}),
        Check("Each budget was kept within 1 %", _budgets(plan), _few(tested, "arm")),
    ]


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
