"""The figures of a study as rows: of each contestant under each budget, and of each run."""

import math
from collections.abc import Mapping, Sequence
from statistics import geometric_mean
from typing import Any

import numpy as np

from llp.comparison.checks import all_runs, spent
from llp.comparison.judgement import Judged
from llp.comparison.markdown import run_names
from llp.comparison.statistics import METHODS, final_loss, is_text
from llp.comparison.study import Contrast, Record, Study


def unit_of(study: Study) -> str:
    """What the figures of a study are: of a text bits per byte, of a task nats per label."""
    tested = (record for record in all_runs(study) if record.test is not None)
    return next(("bits per byte" if is_text(record) else "nats per label" for record in tested), "bits per byte")


def figure_of(record: Record) -> float:
    """A tested run's figure on the whole test."""
    assert record.test is not None
    value = record.test["rows"][0]["bits_per_byte" if is_text(record) else "loss"]
    return math.nan if value is None else value


def mean_of(records: Sequence[Record], name: str) -> float | None:
    """The mean over tested runs of one of the test's figures; None if they have none."""
    known = _known(records, name)
    return math.fsum(known) / len(known) if known else None


def perplexity_of(records: Sequence[Record], name: str) -> float | None:
    """A perplexity of several tested runs: the exponential of their mean loss, so that it converts into that."""
    known = _known(records, name)
    return geometric_mean(known) if known else None


def _known(records: Sequence[Record], name: str) -> list[float]:
    values = [record.test["rows"][0].get(name) for record in records if record.test is not None]
    return [value for value in values if value is not None]


def spread_of(records: Sequence[Record]) -> float | None:
    """The standard deviation over the seeds; None for a single one."""
    return float(np.std([figure_of(record) for record in records], ddof=1)) if len(records) > 1 else None


def summary(study: Study, judged: Mapping[Contrast, Judged], unit: str) -> list[dict[str, Any]]:
    """The lines of `report.csv`: all figures of each contestant under each budget; None: not known."""
    return [
        {
            **{"budget": budget, "arm": arm, "unit": unit},
            **_figures(study, arm, budget),
            **_against(judged.get(Contrast(arm, study.reference, budget))),
        }
        for budget in study.budgets
        for arm in study.arms
    ]


def _figures(study: Study, arm: str, budget: str) -> dict[str, Any]:
    records = study.finals.get((arm, budget), [])
    first = records[0] if records else None
    return {
        "seeds": len(records),
        "figure": math.fsum(map(figure_of, records)) / len(records) if records else None,
        "spread": spread_of(records),
        **{name: mean_of(records, name) for name in ("loss", "accuracy")},
        **{name: perplexity_of(records, name) for name in ("word_perplexity", "perplexity")},
        "validation_loss": math.fsum(map(final_loss, records)) / len(records) if records else None,
        "parameters": first and first.parameters,
        "pairs_per_window": first and first.pairs_per_window,
        "positions": first and first.positions,
        "windows": first and first.windows,
        "steps": first and first.steps,
        "flops": first and first.flops,
        "seconds": spent(study, first, "seconds") if first else None,
        "peak_memory": study.peak_memory.get(arm),
        "learning_rate": first and first.learning_rate,
        "runs": run_names(records),
    }


def _against(judged: Judged | None) -> dict[str, Any]:
    """The difference to the reference; None: it is the reference."""
    outcome = judged and judged.outcome
    interval = outcome and outcome.interval
    return {
        "difference": outcome and outcome.estimate,
        "difference_low": interval and interval.low,
        "difference_high": interval and interval.high,
        "method": outcome and outcome.method,
        "p": interval and interval.p,
        "noise_floor": judged and judged.floor,
        "documents": outcome and outcome.documents,
        "state": _comparison_state(judged),
    }


def _comparison_state(judged: Judged | None) -> str:
    if judged is None:
        return "reference"
    if judged.reasons:
        return "not comparable"
    return "comparable" if judged.outcome else "missing"


def contrast_list(named: Sequence[Judged], others: Sequence[Judged]) -> list[dict[str, Any]]:
    """The lines of `contrasts.csv`: each difference with all of its intervals, those named before the runs first."""
    return [
        {
            **one.contrast._asdict(),
            "named": is_named,
            "difference": one.outcome and one.outcome.estimate,
            **{key: value for method in METHODS for key, value in _interval(one, method).items()},
            "counts": one.outcome and one.outcome.method,
            "noise_floor": one.floor,
            "seeds": one.outcome and len(one.outcome.seeds),
            "documents": one.outcome and one.outcome.documents,
            "p_after_holm": one.p,
            "verdict": one.verdict,
        }
        for is_named, group in ((True, named), (False, others))
        for one in group
    ]


def _interval(one: Judged, method: str) -> dict[str, float | None]:
    interval = one.outcome and one.outcome.intervals.get(method)
    ends = ("low", "high", "p")
    return {f"{method} {end}": interval and getattr(interval, end) for end in ends}


def run_list(study: Study) -> list[dict[str, Any]]:
    """The lines of `runs.csv`."""
    uses = _uses(study)
    return [
        {
            "run": record.run,
            "arm": record.arm,
            "use": ", ".join(uses[record.run]),
            "class_path": record.class_path,
            "seed": record.seed,
            "learning_rate": record.learning_rate,
            "steps": record.steps,
            "windows": record.windows,
            "positions": record.positions,
            "flops": record.flops,
            "parameters": record.parameters,
            "validation_loss": record.validation_loss,
            "figure": None if record.test is None else figure_of(record),
            "device": record.device,
            "commit": record.commit,
            "commands": " && ".join(record.commands),
        }
        for record in all_runs(study)
    ]


def _uses(study: Study) -> dict[str, list[str]]:
    """By run: what it is for."""
    uses: dict[str, list[str]] = {}
    groups = [(budget, records) for (_, budget), records in sorted(study.finals.items())]
    groups += [("rate", [*t.records, *t.partial]) for trials in study.trials.values() for t in trials]
    groups += [("noise floor", list(study.noise))]
    groups += [(name, records) for name, values in study.ablations.items() for _, records in values]
    for use, records in groups:
        for record in records:
            if use not in uses.setdefault(record.run, []):
                uses[record.run].append(use)
    return uses
