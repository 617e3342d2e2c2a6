"""The tables of a report: as data, as CSV files, and in Markdown."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from statistics import geometric_mean
from typing import Any

import numpy as np
import pandas as pd

from llp.comparison.contrasts import Judged
from llp.comparison.statistics import scored_count, sensitivity
from llp.comparison.study import NOISE, RATE, Contrast, Study, Trial, best_trial

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


def signed(value: float | None, decimals: int = 4) -> str:
    """A difference with its sign."""
    return NOTHING if value is None or not math.isfinite(value) else f"{value:+.{decimals}f}"


def power(value: float) -> str:
    """A large or small number as `4.80e14` or `4.80e-7`."""
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa}e{int(exponent)}"


def probability(p: float | None) -> str:
    """A p value with three decimals."""
    return NOTHING if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def ranged(low: float, high: float) -> str:
    """The ends of an interval."""
    return f"{signed(low)} to {signed(high)}"


def counted(n: int, noun: str) -> str:
    """`1 seed`, `2 seeds`."""
    return f"{n:,} {noun}{'' if n == 1 else 's'}"


def run_names(runs: pd.DataFrame) -> str:
    """The names of runs without their arm, with their seeds combined: `lr0.01-steps500-s0,1,2`."""
    seeds: dict[str, list[str]] = {}
    for name, arm in runs["arm"].items():
        configuration, _, seed = name.rpartition("-s")
        seeds.setdefault(configuration.removeprefix(f"{arm}-"), []).append(seed)
    return "; ".join(f"`{name}-s{','.join(own)}`" for name, own in seeds.items()) or NOTHING


def table(head: Sequence[str], rows: Iterable[Sequence[str]], n_left: int = 1) -> list[str]:
    """The lines of a table and a blank one; the first `n_left` columns are aligned to the left, others to the right."""
    rule = ["---" if number < n_left else "---:" for number in range(len(head))]
    lines = (head, rule, *rows)
    return [*(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines), ""]


def image(drawn: Collection[str], name: str, alt: str) -> list[str]:
    """The lines that show a plot, if it was drawn."""
    return [f"![{alt}]({name})", ""] if name in drawn else []


# CSV files


def to_csv(rows: pd.DataFrame) -> str:
    """A table as CSV, with eight significant digits: the ones after them differ between machines."""

    def cell(value: Any) -> str:
        return "" if value is None else f"{value:.8g}" if isinstance(value, float) else str(value)

    return "" if rows.empty else rows.map(cell).to_csv(index=False, lineterminator="\n")


def summary(study: Study, judged: Mapping[Contrast, Judged], unit: str) -> pd.DataFrame:
    """The rows of `report.csv`: all metrics of each arm under each budget; None where unknown."""
    finals = study.finals
    rows = []
    for budget in study.spec.budgets:
        for arm in study.spec.arms:
            runs, one = finals.get((arm, budget)), judged.get(Contrast(arm, study.spec.reference, budget))
            known = dict.fromkeys(_METRICS) if runs is None else _metrics(study, runs)
            about = {"budget": budget, "arm": arm, "unit": unit, "seeds": 0 if runs is None else len(runs)}
            rows.append({**about, **known, "peak_memory": study.timing.peak_memory.get(arm),
                         "learning_rate": known["learning_rate"], "runs": known["runs"] or NOTHING,
                         **_against_reference(one)})  # fmt: skip
    return pd.DataFrame(rows, dtype=object)


_OF_WHOLE_TEST = {"loss": np.mean, "accuracy": np.mean, "word_perplexity": geometric_mean, "perplexity": geometric_mean}
"""Columns of a test's first row and their means. That of a perplexity is the exponential of the mean loss."""
_SIZES = ("parameters", "pairs_per_window", "positions", "windows", "steps", "flops")
_METRICS = (
    "metric",
    "spread",
    *_OF_WHOLE_TEST,
    "validation_loss",
    *_SIZES,
    "seconds",
    "peak_memory",
    "learning_rate",
    "runs",
)


def _metrics(study: Study, runs: pd.DataFrame) -> dict[str, Any]:
    first = runs.iloc[0]
    return {
        "metric": mean(runs["metric"]),
        "spread": spread(runs),
        **{name: _of_whole_test(runs, name) for name in _OF_WHOLE_TEST},
        "validation_loss": mean(runs["validation_loss"]),
        **{name: first[name] for name in _SIZES},
        "seconds": study.spent(first, "seconds"),
        "peak_memory": None,
        "learning_rate": first["learning_rate"],
        "runs": run_names(runs),
    }


def mean(values: Iterable[float]) -> float:
    """The mean, by an exact sum."""
    listed = list(values)
    return math.fsum(listed) / len(listed)


def spread(runs: pd.DataFrame) -> float | None:
    """The standard deviation of the metric over the seeds; None for a single one."""
    return float(np.std(runs["metric"].astype(float), ddof=1)) if len(runs) > 1 else None


def _of_whole_test(runs: pd.DataFrame, name: str) -> float | None:
    values = [whole[name] for whole in runs["whole"] if whole.get(name) is not None]
    if not values:
        return None
    return geometric_mean(values) if name.endswith("perplexity") else mean(values)


def _against_reference(one: Judged | None) -> dict[str, Any]:
    """The difference to the reference; None for the reference itself."""
    outcome = one and one.outcome
    interval = outcome and outcome.interval
    state = "reference" if one is None else "not comparable" if one.reasons else "comparable" if outcome else "missing"
    return {
        "difference": outcome and outcome.estimate,
        "difference_low": interval and interval.low,
        "difference_high": interval and interval.high,
        "method": outcome and outcome.method,
        "p": interval and interval.p,
        "noise_floor": one and one.floor,
        "documents": outcome and outcome.documents,
        "state": state,
    }


def listed_runs(study: Study) -> pd.DataFrame:
    """The rows of `runs.csv`."""
    spec, runs = study.spec, study.recorded
    order = [*sorted(spec.budgets), RATE, NOISE]
    columns = ["run", "arm", "use", "class_path", "seed", "learning_rate", "steps", "windows", "positions", "flops",
               "parameters", "validation_loss", "metric", "device", "commit", "commands"]  # fmt: skip
    metric = [row.get("metric") if row["test"] is not None else None for _, row in runs.iterrows()]
    return runs.assign(
        use=[
            ", ".join(sorted(uses, key=order.index)) if test is not None else RATE
            for uses, test in zip(runs["uses"], runs["test"], strict=True)
        ],
        metric=pd.Series(metric, index=runs.index, dtype=object),
        commands=[" && ".join(commands) for commands in runs["commands"]],
    ).reindex(columns=columns)  # fmt: skip


# Sections of report.md


def results(study: Study, rows: pd.DataFrame, unit: str) -> list[str]:
    """A table of the arms for each budget."""
    spec, lines = study.spec, list[str]()
    for budget in spec.budgets:
        lines += [f"## Results at {BUDGETS[budget]}", ""]
        own = [row for row in rows.to_dict("records") if row["budget"] == budget and row["seeds"]]
        if not own:
            lines += ["No run has been tested yet.", ""]
            continue
        lines += _results_table(study, own, unit)
        explained = "Spread: standard deviation over the seeds. Lower is better; the best comes first."
        lines += [f"{explained}{_baseline(study, budget)}", ""]
        done = {row["arm"]: row["seeds"] for row in own}
        lacking = [arm for arm in spec.arms if done.get(arm, 0) < len(spec.seeds)]
        lines += [f"Not all runs are done of: {', '.join(lacking)}.", ""] if lacking else []
    return lines


def _baseline(study: Study, budget: str) -> str:
    """The score of a model that ignores the context, if a test states it."""
    whole: dict[str, Any] = next(iter(study.tested(budget)["whole"]), {})
    if "unigram_bits_per_byte" in whole:
        return f" A unigram model has {number(whole['unigram_bits_per_byte'])} bits per byte."
    if "chance_loss" in whole:
        accuracy = number(whole["chance_accuracy"], 3)
        return f" A guess has {number(whole['chance_loss'])} nats per label and an accuracy of {accuracy}."
    return ""


def _results_table(study: Study, rows: Sequence[Mapping[str, Any]], unit: str) -> list[str]:
    is_text = unit == "bits per byte"
    quality = ["word perplexity", "loss"] if is_text else ["accuracy"]
    head = ["arm", unit, "spread", f"difference to {study.spec.reference} (95 % interval)", *quality, "parameters",
            "trained positions", "windows", "FLOPs", "seconds", "memory (MB)", "learning rate", "seeds",
            "runs"]  # fmt: skip
    cells = []
    for row in sorted(rows, key=lambda row: (math.isnan(row["metric"]), row["metric"])):
        scores = [number(row["word_perplexity"], 2), number(row["loss"])] if is_text else [number(row["accuracy"], 3)]
        memory = row["peak_memory"]
        compared = _difference(row["difference"], row["difference_low"], row["difference_high"])
        cells.append(
            [row["arm"], number(row["metric"]), number(row["spread"]),
             compared if row["state"] == "comparable" else row["state"], *scores,
             f"{row['parameters']:,}", f"{row['positions']:,}", f"{row['windows']:,}", power(row["flops"]),
             number(row["seconds"], 1), NOTHING if memory is None else f"{memory / 1e6:,.0f}",
             f"{row['learning_rate']:g}", str(row["seeds"]), row["runs"]]
        )  # fmt: skip
    return table(head, cells)


def _difference(estimate: float | None, low: float | None, high: float | None) -> str:
    return signed(estimate) if low is None or high is None else f"{signed(estimate)} ({ranged(low, high)})"


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
    row += [signed(outcome.estimate), interval, outcome.method or NOTHING, number(one.floor)]
    return [*row, str(len(outcome.seeds)), str(outcome.documents), *conclusion]


def _is_within(one: Judged) -> list[str]:
    if one.floor is None or one.outcome is None:
        return [NOTHING]
    return ["yes" if abs(one.outcome.estimate) <= one.floor else "no"]


def learning_rates(study: Study, unit: str, drawn: Collection[str]) -> list[str]:
    """The validation loss at each learning rate."""
    grids = {arm: study.trials(arm) for arm in study.spec.arms}
    rates = sorted({trial.learning_rate for trials in grids.values() for trial in trials})
    if not rates:
        return []
    common = set.intersection(*({t.learning_rate for t in trials} for trials in grids.values() if trials))
    lines = ["## Learning rates", "", *image(drawn, "learning_rates.png", "Validation loss over the learning rate")]
    rows = (_rate_row(study, arm, trials, rates, common) for arm, trials in grids.items())
    lines += table(["arm", *(f"{rate:g}" for rate in rates), "sensitivity", "runs"], rows)
    of = "token" if unit == "bits per byte" else "label"
    return [
        *lines,
        f"Validation loss in nats per {of} at the end of a run{_validated_share(study)}, the mean over the seeds; "
        "once all are done the best one is in bold, with `edge` if none beyond it was tried. Sensitivity: the mean of "
        "min(loss, ln V) minus the best loss, over the rates that all arms have tried (arXiv 2309.14322).",
        "",
    ]


def _validated_share(study: Study) -> str:
    """The fraction of the split that is validated, if the runs' settings state one."""
    runs = study.recorded
    limits = {settings.get("trainer", {}).get("limit_val_batches", 1.0) for settings in runs["settings"]} - {1.0}
    return f", over {', '.join(f'{share:g}' for share in sorted(limits))} of the split's batches" if limits else ""


def _rate_row(
    study: Study, arm: str, trials: Sequence[Trial], rates: Sequence[float], common: Collection[float]
) -> list[str]:
    # Some of the rates don't show which one is best, and a single rate says nothing about others.
    is_complete = all(trial.loss is not None for trial in trials)
    best = best_trial(trials) if is_complete else None
    shared = [trial for trial in trials if trial.learning_rate in common]
    runs = study.of_use(RATE, arm)
    runs = runs[runs["class_path"].notna()]
    size = None if runs.empty else runs["vocab_size"].iloc[0]
    cells = {trial.learning_rate: _loss(trial) for trial in trials}
    if best is not None:
        is_edge = len(trials) > 1 and best in (trials[0], trials[-1])
        cells[best.learning_rate] = f"**{cells[best.learning_rate]}**{' edge' if is_edge else ''}"
    found = sensitivity(shared, size) if is_complete and len(shared) > 1 else None
    return [arm, *(cells.get(rate, "") for rate in rates), number(found), run_names(runs)]


def _loss(trial: Trial) -> str:
    return NOTHING if trial.loss is None else number(trial.loss) if math.isfinite(trial.loss) else "diverged"


def reach(study: Study, drawn: Collection[str]) -> list[str]:
    """How far back the models read: loss by position, loss on recall tokens, and accuracy by distance."""
    images = [
        *image(drawn, "position.png", "Loss by position in the window"),
        *image(drawn, "recall.png", "Loss on recall tokens by distance"),
        *image(drawn, "accuracy.png", "Accuracy by distance"),
    ]
    why_not = "Nothing is known yet: no run has been tested."
    if study.finals:
        why_not = "Not measured: the losses by position and by distance are left out with `slices: false`."
    lines = ["## How far back the models read", "", *(images or [why_not, ""]), *_accuracies(study)]
    rows = [row for arm, runs in study.first_finals().items() if (row := _recall_row(arm, runs))]
    if rows:
        lines += ["Recall tokens complete a bigram that was seen earlier in their context.", ""]
        lines += table(["arm", "loss on recall tokens", "loss on others", "share of recall tokens", "runs"], rows)
    return lines


def _recall_row(arm: str, runs: pd.DataFrame) -> list[str]:
    is_sliced = [bool(slices and slices.get("recall") and slices.get("other")) for slices in runs["slices"]]
    known = runs[np.array(is_sliced, dtype=bool)]
    recall = [part for slices in known["slices"] for part in slices["recall"]]
    other = [slices["other"] for slices in known["slices"]]
    (recall_tokens, recall_loss), (other_tokens, other_loss) = map(_total, (recall, other))
    if not (recall_tokens and other_tokens):
        return []
    share = recall_tokens / (recall_tokens + other_tokens)
    return [arm, number(recall_loss), number(other_loss), f"{share:.1%}", run_names(known)]


def _total(parts: Sequence[Mapping[str, Any]]) -> tuple[int, float]:
    """The number of tokens in slices and their loss."""
    tokens = sum(part["tokens"] for part in parts)
    return tokens, math.fsum(part["nats"] for part in parts) / tokens if tokens else math.nan


def accuracies(test: Mapping[str, Any] | None) -> dict[tuple[int, int], float]:
    """The fraction of correct labels by the least and the greatest distance to the answer; empty for a text."""
    parts = (test or {}).get("distances") or []
    return {(part["first"], part["last"]): part["correct"] / part["labels"] for part in parts if part["labels"]}


def _accuracies(study: Study) -> list[str]:
    """The accuracy of each arm at each distance; nothing for a text."""
    found = {arm: [accuracies(test) for test in runs["test"]] for arm, runs in study.first_finals().items()}
    found = {arm: runs for arm, runs in found.items() if all(runs)}
    if not found:
        return []
    spans = sorted({span for runs in found.values() for run in runs for span in run})
    rows = [[_span(*span), *(_accuracy_cell(runs, span) for runs in found.values())] for span in spans]
    note = "Share of correct labels by the number of tokens to the answer: the mean over the seeds (least to greatest)."
    return [*table(["distance", *found], rows), note, ""]


def _span(first: int, last: int) -> str:
    return f"{first}" if first == last else f"{first} to {last}"


def _accuracy_cell(runs: Sequence[Mapping[tuple[int, int], float]], span: tuple[int, int]) -> str:
    shares = [run[span] for run in runs if span in run]
    if not shares:
        return NOTHING
    found = number(mean(shares), 3)
    return found if len(shares) == 1 else f"{found} ({number(min(shares), 3)} to {number(max(shares), 3)})"


def scoring(study: Study) -> list[str]:
    """How each arm was scored, and how its seconds were measured."""
    finals = study.finals
    examples = [(arm, runs.iloc[0]) for arm in study.spec.arms for (own, _), runs in finals.items() if own == arm]
    by_arm = dict(reversed(examples))
    if not by_arm:
        return []
    head = ["arm", "window", "stride", "least context", "mean", "greatest", "predictions", "bytes", "documents"]
    rows = [_scoring_row(arm, by_arm[arm]) for arm in study.spec.arms if arm in by_arm]
    words = {run["test"]["protocol"].get("word_count") for run in by_arm.values()}
    lines = ["## How they were scored", "", *table(head, rows)]
    lines += [
        "Context: how many tokens a token is predicted from; the least is that after a document's first window.",
        *(f"Words: {what}." for what in sorted(filter(None, words))),
        "",
    ]
    if study.timing.how:
        how = ", ".join(f"{name} {value}" for name, value in study.timing.how.items())
        lines += [
            f"Seconds and memory are from a separate timing pass ({how}), not from the runs: they are the "
            "cost of this implementation on that device; memory is that of a whole process.",
            "",
        ]
    return lines


def _scoring_row(arm: str, run: pd.Series) -> list[str]:
    protocol, whole = run["test"]["protocol"], run["whole"]
    names = ("window_len", "stride", "context_least", "context_mean", "context_greatest")
    context = [number(protocol.get(name), 1 if name == "context_mean" else 0) for name in names]
    counts = (scored_count(whole), whole.get("bytes"), len(run["documents"]))
    return [arm, *context, *(number(count, 0) for count in counts)]


def runs(listed: pd.DataFrame) -> list[str]:
    """All runs, the rows of `runs.csv`, folded."""
    rows = [
        [f"[{row['run']}](records/{row['run']}.json)", row["arm"], row["use"], str(row["seed"]),
         f"{row['learning_rate']:g}", f"{row['steps']:,}", number(row["validation_loss"]), number(row["metric"]),
         (row["commit"] or NOTHING)[:10]]
        for row in listed.to_dict("records")
    ]  # fmt: skip
    head = ["run", "arm", "for", "seed", "learning rate", "steps", "validation loss", "test", "commit"]
    lines = ["## Runs", "", "Each with the commands that repeat it in [runs.csv](runs.csv).", ""]
    return [*lines, f"<details><summary>{counted(len(rows), 'run')}</summary>", "", *table(head, rows, 3), "</details>"]
