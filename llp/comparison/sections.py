"""The sections of a report below its first screen: tables and pictures."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from llp.comparison.checks import Check, reasons
from llp.comparison.figures import figure_of, spread_of
from llp.comparison.judgement import Judged
from llp.comparison.markdown import (
    BUDGETS,
    NOTHING,
    counted,
    image,
    number,
    power,
    probability,
    run_names,
    signed,
    table,
)
from llp.comparison.pictures import ablation_file
from llp.comparison.statistics import best_trial, difference, document_rows, scored_count, sensitivity, trial_loss
from llp.comparison.study import Contrast, Record, Study, Trial


def budget_tables(study: Study, summary: Sequence[Mapping[str, Any]], unit: str) -> list[str]:
    """A table for each budget of the rows of `report.csv`."""
    lines = []
    for budget in study.budgets:
        lines += [f"## Results at {BUDGETS[budget]}", ""]
        rows = [row for row in summary if row["budget"] == budget and row["seeds"]]
        if not rows:
            lines += ["No run has been tested yet.", ""]
            continue
        lines += _budget_table(study, rows, unit)
        spread = "Spread: standard deviation over the seeds. Less is better; the best comes first."
        lines += ["", f"{spread}{_baseline(study, budget)}", ""]
        lacking = [arm for arm in study.arms if len(study.finals.get((arm, budget), [])) < len(study.seeds)]
        if lacking:
            lines += [f"Not all runs are done of: {', '.join(lacking)}.", ""]
    return lines


def _baseline(study: Study, budget: str) -> str:
    """What a model that knows nothing of the context would score, where a test says it."""
    tests = (record.test for arm in study.arms for record in study.finals.get((arm, budget), []))
    whole: dict[str, Any] = next((test["rows"][0] for test in tests if test is not None), {})
    if "unigram_bits_per_byte" in whole:
        return f" A unigram model has {number(whole['unigram_bits_per_byte'])} bits per byte."
    if "chance_loss" in whole:
        accuracy = number(whole["chance_accuracy"], 3)
        return f" A guess has {number(whole['chance_loss'])} nats per label and an accuracy of {accuracy}."
    return ""


def _budget_table(study: Study, rows: Sequence[Mapping[str, Any]], unit: str) -> list[str]:
    text = unit == "bits per byte"
    head = ["arm", unit, "spread", f"difference to {study.reference} (95 % interval)"]
    head += ["word perplexity", "loss"] if text else ["accuracy"]
    head += [
        "parameters",
        "trained positions",
        "windows",
        "FLOPs",
        "seconds",
        "memory (MB)",
        "learning rate",
        "seeds",
        "runs",
    ]
    cells = []
    for row in sorted(rows, key=lambda row: (math.isnan(row["figure"]), row["figure"])):
        quality = [number(row["word_perplexity"], 2), number(row["loss"])] if text else [number(row["accuracy"], 3)]
        memory = row["peak_memory"]
        cells.append(
            [
                row["arm"],
                number(row["figure"]),
                number(row["spread"]),
                _difference_cell(row),
                *quality,
                f"{row['parameters']:,}",
                f"{row['positions']:,}",
                f"{row['windows']:,}",
                power(row["flops"]),
                number(row["seconds"], 1),
                NOTHING if memory is None else f"{memory / 1e6:,.0f}",
                f"{row['learning_rate']:g}",
                str(row["seeds"]),
                row["runs"],
            ]
        )
    return table(head, cells)


def _difference_cell(row: Mapping[str, Any]) -> str:
    if row["state"] != "comparable":
        return row["state"]
    if row["difference_low"] is None:
        return signed(row["difference"])
    return f"{signed(row['difference'])} ({signed(row['difference_low'])} to {signed(row['difference_high'])})"


def contrast_tables(named: Sequence[Judged], others: Sequence[Judged], unit: str) -> list[str]:
    """All differences: with verdicts those that were named before the runs, and the others."""
    lines = ["## Contrasts", ""]
    head = ["contrast", "budget", unit, "95 % interval", "by", "noise floor", "seeds", "documents"]
    if named:
        lines += ["Named before the runs, p after Holm's correction over all of them:", ""]
        rows = [_contrast_row(one, is_primary=True) for one in named]
        lines += [*table([*head, "p", "verdict"], rows, 2), ""]
    if others:
        lines += ["Exploratory: not corrected for their number; of many such intervals some miss by chance.", ""]
        rows = [_contrast_row(one, is_primary=False) for one in others]
        lines += [*table([*head, "within the noise floor"], rows, 2), ""]
    intervals = (
        "Differences are paired by seed and by document. Of three intervals the widest counts: the multi-bootstrap "
        "over seeds and documents, the paired t over seeds, Welch's t over seeds."
    )
    return [*lines, intervals, ""]


def _contrast_row(one: Judged, is_primary: bool) -> list[str]:
    (first, second, budget), outcome = one.contrast, one.outcome
    row = [f"{first} - {second}", BUDGETS[budget]]
    if outcome is None:
        what = "not comparable" if one.reasons else "missing"
        return [*row, *[NOTHING] * (7 if is_primary else 6), what]
    interval = outcome.interval
    row += [
        signed(outcome.estimate),
        NOTHING if interval is None else f"{signed(interval.low)} to {signed(interval.high)}",
        outcome.method or NOTHING,
        number(one.floor),
        str(len(outcome.seeds)),
        str(outcome.documents),
    ]
    return [*row, probability(one.p), one.verdict or NOTHING] if is_primary else [*row, _within(one)]


def _within(one: Judged) -> str:
    return NOTHING if one.floor is None else "yes" if one.is_below_the_floor else "no"


def costs(study: Study, drawn: Collection[str]) -> list[str]:
    """The loss over FLOPs and seconds."""
    picture = image(drawn, "cost.png", "Validation loss over FLOPs and seconds")
    if not picture:
        return []
    note = "Bands reach from the least to the greatest seed"
    others = {budget for (_, budget), records in study.finals.items() if records} - {*study.budgets[:1]}
    if others & {"flops", "seconds"}:
        note += "; hollow: where the runs at equal FLOPs or seconds ended"
    return ["## Loss over cost", "", *picture, f"{note}.", ""]


def learning_rates(study: Study, unit: str, drawn: Collection[str]) -> list[str]:
    """What each learning rate came to."""
    rates = sorted({trial.learning_rate for trials in study.trials.values() for trial in trials})
    if not rates:
        return []
    lines = ["## Learning rates", "", *image(drawn, "learning_rates.png", "Validation loss over the learning rate")]
    common = _common_rates(study)
    rows = (_rate_row(study, arm, rates, common) for arm in study.arms)
    lines += table(["arm", *(f"{rate:g}" for rate in rates), "sensitivity", "runs"], rows)
    of = "token" if unit == "bits per byte" else "label"
    note = (
        f"Validation loss in nats per {of} at the end of a run{_share_of_validation(study)}, the mean over the seeds; "
        "once all are done the best one is in bold, with `edge` if none beyond was tried. Sensitivity: the mean of "
        "min(loss, ln V) less the best loss, over the rates that all have tried (arXiv 2309.14322)."
    )
    return [*lines, "", note, ""]


def _share_of_validation(study: Study) -> str:
    """That a part of the split is validated, where the runs' settings say so."""
    records = (record for trials in study.trials.values() for trial in trials for record in trial.records)
    limits = {record.settings.get("trainer", {}).get("limit_val_batches", 1.0) for record in records}
    shares = sorted(limit for limit in limits if limit != 1.0)
    return f", over {', '.join(f'{share:g}' for share in shares)} of the split's batches" if shares else ""


def _common_rates(study: Study) -> set[float]:
    """The learning rates that every contestant tries; extensions are not among them unless all need them."""
    tried = [{trial.learning_rate for trial in trials} for trials in study.trials.values() if trials]
    return set.intersection(*tried) if tried else set()


def _rate_row(study: Study, arm: str, rates: Sequence[float], common: Collection[float]) -> list[str]:
    trials = study.trials.get(arm, [])
    # Of a part of the rates nothing can be said about the best one, and of a single rate nothing about the others.
    is_complete = all(trial.is_done for trial in trials)
    best = best_trial(trials) if is_complete else None
    shared = [trial for trial in trials if trial.learning_rate in common]
    summarized = sensitivity(shared) if is_complete and len(shared) > 1 else None
    tried = {trial.learning_rate: trial for trial in trials}
    cells = []
    for rate in rates:
        text = _rate_cell(tried.get(rate))
        if best is not None and rate == best.learning_rate:
            is_edge = len(trials) > 1 and rate in (trials[0].learning_rate, trials[-1].learning_rate)
            text = f"**{text}**{' edge' if is_edge else ''}"
        cells.append("" if rate not in tried else text)
    runs = run_names([record for trial in trials for record in [*trial.records, *trial.partial]])
    return [arm, *cells, number(summarized and summarized.mean), runs]


def _rate_cell(trial: Trial | None) -> str:
    if trial is None or not trial.is_done:
        return NOTHING
    loss = trial_loss(trial)
    return number(loss) if math.isfinite(loss) else "diverged"


def ablation_tables(study: Study, checks: Sequence[Check], unit: str, drawn: Collection[str]) -> list[str]:
    """A table and a picture for each ablation."""
    if not study.ablations:
        return []
    lines = ["## Ablations", ""]
    for name, values in study.ablations.items():
        lines += [f"### {name}", "", *image(drawn, ablation_file(name), name)]
        own = own_records(study, name)
        rows = [_ablation_row(study, checks, value, records, own) for value, records in values]
        head = [
            name.rpartition(".")[2],
            unit,
            "spread",
            "difference to its own",
            "pairs per window",
            "FLOPs",
            "seeds",
            "runs",
        ]
        lines += [*table(head, rows), ""]
    return lines


def own_value(study: Study, name: str) -> Any:
    """The value that the contestant itself has in an ablation; None if none of its runs is done."""
    return next((value for value, records in study.ablations[name] if records and records[0].arm in study.arms), None)


def own_records(study: Study, name: str) -> Sequence[Record]:
    """The tested runs of the contestant itself in an ablation."""
    return next((records for _, records in study.ablations[name] if records and records[0].arm in study.arms), [])


def _ablation_row(
    study: Study, checks: Sequence[Check], value: Any, records: Sequence[Record], own: Sequence[Record]
) -> list[str]:
    if not records:
        return [_value(value), "missing", *[NOTHING] * 6]
    figures = [figure_of(record) for record in records]
    first = records[0]
    cell = ""
    if own and own[0].arm != first.arm:
        contrast = Contrast(first.arm, own[0].arm, study.budgets[0])
        outcome = None if reasons(checks, contrast) else difference(records, own)
        interval = outcome.interval if outcome else None
        cell = signed(outcome.estimate) if outcome else "not comparable"
        cell += f" ({signed(interval.low)} to {signed(interval.high)})" if interval else ""
    return [
        _value(value),
        number(math.fsum(figures) / len(figures)),
        number(spread_of(records)),
        cell,
        f"{first.pairs_per_window:,}",
        power(first.flops),
        str(len(records)),
        run_names(records),
    ]


def _value(value: Any) -> str:
    return "none" if value is None else str(value)


def scoring(study: Study) -> list[str]:
    """How each contestant was scored, and how its seconds were measured."""
    examples = [(arm, group[0]) for arm in study.arms for b in study.budgets if (group := study.finals.get((arm, b)))]
    by_arm = dict(reversed(examples))
    rows = [_scoring_row(arm, by_arm[arm]) for arm in study.arms if arm in by_arm]
    if not rows:
        return []
    head = ["arm", "window", "stride", "least context", "mean", "greatest", "predictions", "bytes", "documents"]
    lines = ["## How they were scored", "", *table(head, rows), ""]
    lines += [
        "Context: from how many tokens a token is predicted; the least is that after a document's first window.",
        *(f"Words: {what}." for what in _word_counts(by_arm.values())),
        "",
    ]
    if study.timing:
        how = ", ".join(f"{name} {value}" for name, value in study.timing.items())
        lines += [
            f"Seconds and memory are from a timing pass of their own ({how}), not from the runs: they are the "
            "cost of this implementation there, and memory is that of a whole process.",
            "",
        ]
    return lines


def _word_counts(records: Iterable[Record]) -> list[str]:
    """What is counted as words, as the tests of a text say it."""
    tests = (record.test["protocol"].get("word_count") for record in records if record.test is not None)
    return sorted({what for what in tests if what})


def _scoring_row(arm: str, record: Record) -> list[str]:
    assert record.test is not None
    protocol, whole = record.test["protocol"], record.test["rows"][0]
    counts = [protocol.get("window_len"), protocol.get("stride"), protocol.get("context_least")]
    means = [protocol.get("context_mean")]
    rest = [protocol.get("context_greatest"), scored_count(whole), whole.get("bytes"), len(document_rows(record))]
    cells = [*(number(v, 0) for v in counts), *(number(v, 1) for v in means), *(number(v, 0) for v in rest)]
    return [arm, *cells]


def runs(listed: Sequence[Mapping[str, Any]]) -> list[str]:
    """All runs, the rows of `runs.csv`, in a fold-out."""
    rows = [
        [
            f"[{row['run']}](records/{row['run']}.json)",
            row["arm"],
            row["use"],
            str(row["seed"]),
            f"{row['learning_rate']:g}",
            f"{row['steps']:,}",
            number(row["validation_loss"]),
            number(row["figure"]),
            (row["commit"] or NOTHING)[:10],
        ]
        for row in listed
    ]
    head = ["run", "arm", "for", "seed", "learning rate", "steps", "validation loss", "test", "commit"]
    lines = ["## Runs", "", "Each with the commands that repeat it in [runs.csv](runs.csv).", ""]
    return [
        *lines,
        f"<details><summary>{counted(len(rows), 'run')}</summary>",
        "",
        *table(head, rows, 3),
        "",
        "</details>",
    ]
