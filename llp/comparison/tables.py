"""The tables of a report: as data, as CSV files, and in Markdown."""

import math
from collections.abc import Collection, Iterable, Sequence
from statistics import geometric_mean
from typing import Any

import numpy as np
import pandas as pd

from llp.comparison.contrasts import Judged
from llp.comparison.plan import Plan
from llp.comparison.records import NOISE, RATE, Trial, best_trial

NOTHING = "-"
BUDGETS = {
    "windows": "equal windows",
    "positions": "equal trained positions",
    "flops": "equal FLOPs",
    "seconds": "equal seconds",
}

# Cells


def number(value: float | None, decimals: int = 4) -> str:
    """A number as `1,234.5`, a large or small one as `1.23e9`; a dash if it is unknown or not finite."""
    if value is None or not math.isfinite(value):
        return NOTHING
    is_plain = decimals == 0 or value == 0 or 10.0**-decimals <= abs(value) < 1e6
    return f"{value:,.{decimals}f}" if is_plain else power(value)


def power(value: float) -> str:
    """A large or small number as `4.80e14` or `4.80e-7`."""
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def probability(p: float | None) -> str:
    """A p value with three decimals."""
    return NOTHING if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def ranged(low: float, high: float) -> str:
    """The ends of an interval."""
    return f"{low:+.4f} to {high:+.4f}"


def counted(n: int, noun: str) -> str:
    """`1 seed`, `2 seeds`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], n_left: int = 1) -> list[str]:
    """The lines of a table and a blank one; the first `n_left` columns are aligned to the left, others to the right."""
    rule = ["---" if number < n_left else "---:" for number in range(len(head))]
    return [*(f"| {' | '.join(line)} |" for line in (head, rule, *rows)), ""]


def image(drawn: Collection[str], name: str, alt: str) -> list[str]:
    """The lines that show a plot, if it was drawn."""
    return [f"![{alt}]({name})", ""] if name in drawn else []


# CSV files


def to_csv(rows: pd.DataFrame) -> str:
    """A table as CSV, with eight significant digits: the ones after them differ between machines."""

    def cell(value: Any) -> str:
        return "" if value is None else f"{value:.8g}" if isinstance(value, float) else str(value)

    return "" if rows.empty else rows.map(cell).to_csv(index=False, lineterminator="\n")


def summary(plan: Plan, unit: str) -> pd.DataFrame:
    """The rows of `report.csv`: the metrics of each arm under each budget, the best first."""
    rows = []
    for (arm, budget), runs in plan.finals.items():
        first = runs.iloc[0]
        sizes = ("parameters", "pairs_per_window", "positions", "windows", "steps", "flops", "learning_rate")
        rows.append(
            {
                "budget": budget,
                "arm": arm,
                "unit": unit,
                "seeds": len(runs),
                "metric": mean(runs["metric"]),
                "spread": spread(runs),
                **{name: _of_whole_test(runs, name) for name in ("loss", "accuracy", "word_perplexity", "perplexity")},
                "validation_loss": mean(runs["validation_loss"]),
                **{name: first[name] for name in sizes},
                "seconds": plan.spent(first, "seconds"),
            }
        )
    order = plan.spec.budgets.index
    rows.sort(key=lambda row: (order(row["budget"]), math.isnan(row["metric"]), row["metric"]))
    return pd.DataFrame(rows, dtype=object)


def mean(values: Iterable[float]) -> float:
    """The mean, by an exact sum."""
    listed = list(values)
    return math.fsum(listed) / len(listed)


def spread(runs: pd.DataFrame) -> float | None:
    """The standard deviation of the metric over the seeds; None for a single one."""
    return float(np.std(runs["metric"].astype(float), ddof=1)) if len(runs) > 1 else None


def _of_whole_test(runs: pd.DataFrame, name: str) -> float | None:
    """The mean over the seeds; that of a perplexity is the exponential of the mean loss."""
    values = [whole[name] for whole in runs["whole"] if whole.get(name) is not None]
    if not values:
        return None
    return geometric_mean(values) if name.endswith("perplexity") else mean(values)


def listed_runs(plan: Plan) -> pd.DataFrame:
    """The rows of `runs.csv`."""
    runs, order = plan.recorded, [*sorted(plan.spec.budgets), RATE, NOISE]
    columns = ["run", "arm", "use", "class_path", "seed", "learning_rate", "steps", "windows", "positions", "flops",
               "parameters", "validation_loss", "metric", "device", "commit", "commands"]  # fmt: skip
    return runs.assign(
        use=[
            ", ".join(sorted(uses, key=order.index)) if test is not None else RATE
            for uses, test in zip(runs["uses"], runs["test"], strict=True)
        ],
        commands=[" && ".join(commands) for commands in runs["commands"]],
    )[columns]


# Sections of report.md


def results(plan: Plan, rows: pd.DataFrame, unit: str) -> list[str]:
    """A table of the arms for each budget."""
    is_text, lines = unit == "bits per byte", list[str]()
    quality = ["word perplexity", "loss"] if is_text else ["accuracy"]
    head = ["arm", unit, "spread", *quality, "parameters", "trained positions", "windows", "FLOPs", "seconds",
            "learning rate", "seeds"]  # fmt: skip
    for budget in plan.spec.budgets:
        lines += [f"## Results at {BUDGETS[budget]}", ""]
        cells = [
            [row["arm"], number(row["metric"]), number(row["spread"]),
             *([number(row["word_perplexity"], 2), number(row["loss"])] if is_text else [number(row["accuracy"], 3)]),
             f"{row['parameters']:,}", f"{row['positions']:,}", f"{row['windows']:,}", power(row["flops"]),
             number(row["seconds"], 1), f"{row['learning_rate']:g}", str(row["seeds"])]
            for row in rows.to_dict("records") if row["budget"] == budget
        ]  # fmt: skip
        if cells:
            lines += table(head, cells)
            explained = "Spread: standard deviation over the seeds. Lower is better; the best comes first."
            lines += [f"{explained}{_baseline(plan, budget)}", ""]
        else:
            lines += ["No run has been tested yet.", ""]
    return lines


def _baseline(plan: Plan, budget: str) -> str:
    """The score of a model that ignores the context, if a test states it."""
    whole: dict[str, Any] = next(iter(plan.tested(budget)["whole"]), {})
    if "unigram_bits_per_byte" in whole:
        return f" A unigram model has {number(whole['unigram_bits_per_byte'])} bits per byte."
    if "chance_loss" in whole:
        accuracy = number(whole["chance_accuracy"], 3)
        return f" A guess has {number(whole['chance_loss'])} nats per label and an accuracy of {accuracy}."
    return ""


def contrasts(beforehand: Sequence[Judged], others: Sequence[Judged], unit: str) -> list[str]:
    """All differences: those named before the runs with verdicts, and the others."""
    lines = ["## Contrasts", ""]
    head = ["contrast", "budget", unit, "95 % interval", "by", "noise floor", "seeds", "documents"]
    if beforehand:
        lines += ["Named before the runs, p after Holm's correction over all of them:", ""]
        verdicts = [[probability(one.p), one.verdict or NOTHING] for one in beforehand]
        lines += table([*head, "p", "verdict"], map(_contrast_row, beforehand, verdicts), 2)
    if others:
        lines += ["Exploratory: not corrected for their number; some of many such intervals miss by chance.", ""]
        lines += table([*head, "within the noise floor"], map(_contrast_row, others, map(_is_within, others)), 2)
    intervals = (
        "Differences are paired by seed and by document. Of three intervals the widest counts: the multi-bootstrap "
        "over seeds and documents, the paired t over seeds, Welch's t over seeds."
    )
    return [*lines, intervals, ""]


def _contrast_row(one: Judged, conclusion: list[str]) -> list[str]:
    (first, second, budget), outcome = one.contrast, one.outcome
    row = [f"{first} - {second}", BUDGETS[budget]]
    if outcome is None:
        what = "not comparable" if one.reasons else "missing"
        return [*row, *[NOTHING] * (5 + len(conclusion)), what]
    interval = NOTHING if outcome.interval is None else ranged(outcome.interval.low, outcome.interval.high)
    row += [f"{outcome.estimate:+.4f}", interval, outcome.method or NOTHING, number(one.floor)]
    return [*row, str(len(outcome.seeds)), str(outcome.documents), *conclusion]


def _is_within(one: Judged) -> list[str]:
    if one.floor is None or one.outcome is None:
        return [NOTHING]
    return ["yes" if abs(one.outcome.estimate) <= one.floor else "no"]


def learning_rates(plan: Plan, unit: str) -> list[str]:
    """The validation loss at each learning rate."""
    grids = {arm: plan.trials(arm) for arm in plan.spec.arms}
    rates = sorted({trial.learning_rate for trials in grids.values() for trial in trials})
    if not rates:
        return []
    cells = {arm: _rates(trials) for arm, trials in grids.items()}
    rows = ([arm, *(own.get(rate, "") for rate in rates)] for arm, own in cells.items())
    of = "token" if unit == "bits per byte" else "label"
    return [
        "## Learning rates",
        "",
        *table(["arm", *(f"{rate:g}" for rate in rates)], rows),
        f"Validation loss in nats per {of} at the end of a run, the mean over the seeds; once all are done the best "
        "one is in bold, with `edge` if none beyond it was tried.",
        "",
    ]


def _rates(trials: Sequence[Trial]) -> dict[float, str]:
    """The cells of an arm's learning rates. The best one is known once all are done."""
    cells = {trial.learning_rate: "diverged" if trial.loss == math.inf else number(trial.loss) for trial in trials}
    best = best_trial(trials)
    if best is not None and all(trial.loss is not None for trial in trials):
        edge = " edge" if len(trials) > 1 and best in (trials[0], trials[-1]) else ""
        cells[best.learning_rate] = f"**{cells[best.learning_rate]}**{edge}"
    return cells


def scoring(plan: Plan) -> list[str]:
    """From how much context each arm was scored, and how its seconds were measured."""
    protocols = {arm: runs["test"].iloc[0]["protocol"] for (arm, _), runs in plan.finals.items()}
    if not protocols:
        return []
    names = ("window_len", "stride", "context_least", "context_mean", "context_greatest")
    rows = [
        [arm, *(number(protocol.get(name), 1 if name == "context_mean" else 0) for name in names)]
        for arm, protocol in protocols.items()
    ]
    words = {protocol.get("word_count") for protocol in protocols.values()}
    lines = [
        "## How they were scored",
        "",
        *table(["arm", "window", "stride", "least context", "mean", "greatest"], rows),
        "Context: how many tokens a token is predicted from; the least is that after a document's first window.",
        *(f"Words: {what}." for what in sorted(filter(None, words))),
        "",
    ]
    if plan.timing.how:
        how = ", ".join(f"{name} {value}" for name, value in plan.timing.how.items())
        cost = "they are the cost of this implementation on that device."
        lines += [f"Seconds are from a separate timing pass ({how}), not from the runs: {cost}", ""]
    return lines
