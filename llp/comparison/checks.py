"""Whether runs may be compared at all: what a comparison holds equal is read off its records, not taken on trust."""

import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import chain
from typing import Any, NamedTuple

from llp.comparison.statistics import best_trial, document_rows, scored_count
from llp.comparison.study import Contrast, Record, Study, Trial

_BUDGET_TOLERANCE = 0.01
_SCORING = ("window_len", "stride", "data_fingerprint", "tokenizer_fingerprint")
_NOTHING = object()


class Finding(NamedTuple):
    """Something that is not as it must be."""

    text: str
    arms: frozenset[str]
    """Whose differences to others mean nothing."""
    budget: str | None
    """Under which budget; None: under all."""


class Check(NamedTuple):
    """A condition, and what contradicts it."""

    title: str
    findings: list[Finding]
    unchecked: str | None = None
    """Why the records don't show whether it holds, or not of which; None: they show it."""


def check(study: Study) -> list[Check]:
    """All conditions of a comparison, each with what contradicts it; where values differ, the rarer one is wrong."""
    runs = all_runs(study)
    tested = [record for record in runs if record.test is not None]
    finals = _finals(study)
    tried = [arm for arm in study.arms if any(trial.is_done for trial in study.trials.get(arm, []))]
    chosen = [records for (arm, _), records in study.finals.items() if records and len(_grid(study, arm)) > 1]
    others = [arm for (arm, budget), group in study.finals.items() if group and _allowed(study, budget)]
    at_equal_windows = [group for (_, budget), group in study.finals.items() if group and budget == "windows"]
    return [
        _check(
            "All were scored with one window, one stride, one tokenizer, on one data set",
            _scoring(study, tested),
            len(tested) > 1,
        ),
        _check("All were scored on the same documents, completely", _documents(study, tested), len(tested) > 1),
        _check("No test loss is infinite", _infinite(tested), len(tested) > 0),
        _check("The certificate of causality was passed by all", _certificate(tested), len(tested) > 0),
        _check(
            "Runs of one seed and length took the same training windows, other seeds others",
            _windows(study, runs),
            any(len(group) > 1 for group in _grouped(runs, _length)),
        ),
        _first_windows(study, runs),
        _check("All read the same text with the same tokenizer", _data(study, runs), len(runs) > 1),
        _check(
            "Runs of one seed and size began with the same weights",
            _weights(study, runs),
            any(len(group) > 1 for group in _grouped(runs, _start)),
        ),
        _check("All have the same number of parameters (V3's map apart)", _sizes(study), len(_arms(finals)) > 1),
        _check(
            "All tried the same learning rates, more only where the best one lay at the edge",
            _grids(study),
            len(tried) > 1,
        ),
        _edges(study),
        _check("The learning rate of each is the best one of those tried, on validation", _chosen(study), bool(chosen)),
        _check("All had the same schedule under equal windows", _schedules(study), len(at_equal_windows) > 1),
        _check("Each budget was kept within 1 %", _budgets(study), len(set(others)) > 1),
        _check("The runs for the noise floor differ by their seed alone", _noise(study), len(study.noise) > 1),
    ]


def _check(title: str, findings: list[Finding], is_possible: bool) -> Check:
    return Check(title, findings, None if is_possible or findings else "nothing to check")


def reasons(checks: Sequence[Check], contrast: Contrast) -> list[str]:
    """Why two contestants can't be compared under a budget; empty: they can."""
    return [
        finding.text
        for finding in chain.from_iterable(check.findings for check in checks)
        if finding.arms & {contrast.first, contrast.second} and finding.budget in (None, contrast.budget)
    ]


def all_runs(study: Study) -> list[Record]:
    """Every record of a study once, in the order of the runs' names."""
    tried = chain.from_iterable(study.trials.values())
    trials = (record for trial in tried for record in [*trial.records, *trial.partial])
    ablations = (record for values in study.ablations.values() for _, records in values for record in records)
    everything = chain(chain.from_iterable(study.finals.values()), trials, study.noise, ablations)
    return sorted({(record.run, record.arm): record for record in everything}.values(), key=lambda r: (r.run, r.arm))


def setting(record: Record, part: str, name: str) -> Any:
    """One of a run's settings, of its `model` or `data`; None: the configuration doesn't say it."""
    return record.settings.get(part, {}).get("init_args", {}).get(name)


def _odd(study: Study, items: Iterable[tuple[Record, Hashable]]) -> list[tuple[Record, Any, Any]]:
    """The records whose value is not the one that most have, with both; of equally frequent ones the reference's."""
    items = list(items)
    counts = Counter(value for _, value in items)
    of_reference = {value for record, value in items if record.arm == study.reference}
    usual = max(counts, key=lambda value: (counts[value], value in of_reference), default=_NOTHING)
    return [(record, value, usual) for record, value in items if value != usual]


def _finding(record: Record, text: str, budget: str | None = None) -> Finding:
    return Finding(f"{record.run}: {text}", frozenset([record.arm]), budget)


def _scoring(study: Study, tested: Sequence[Record]) -> list[Finding]:
    findings = []
    for name in _SCORING:
        values = ((record, record.test["protocol"].get(name)) for record in tested)  # type: ignore[index]
        for record, value, usual in _odd(study, values):
            findings.append(_finding(record, f"{name} is {_short(value)}, that of others {_short(usual)}"))
    return findings


def _documents(study: Study, tested: Sequence[Record]) -> list[Finding]:
    findings = [_finding(r, "not all of the test was scored") for r in tested if not r.test["protocol"].get("complete")]  # type: ignore[index]
    for record in tested:
        whole, rows = record.test["rows"][0], document_rows(record)  # type: ignore[index]
        if scored_count(whole) != sum(map(scored_count, rows)):
            findings.append(_finding(record, "its documents don't add up to the tokens of the whole test"))
        elif is_finite(record) and not math.isclose(whole["nats"], math.fsum(r["nats"] for r in rows), rel_tol=1e-9):
            findings.append(_finding(record, "its documents don't add up to the loss of the whole test"))
    for record, texts, usual in _odd(study, ((record, _texts(record)) for record in tested)):
        wrong = f"{len(set(texts) - set(usual))} unknown" if set(texts) - set(usual) else ""
        lacking = f"{len(set(usual) - set(texts))} missing" if set(usual) - set(texts) else ""
        what = ", ".join(filter(None, (lacking, wrong))) or "in another order"
        findings.append(_finding(record, f"other documents than the others' {len(usual)} ({what})"))
    return findings


def is_finite(record: Record) -> bool:
    """Whether the loss of a tested run is finite on every document."""
    assert record.test is not None
    return all(row["nats"] is not None and math.isfinite(row["nats"]) for row in record.test["rows"])


def _infinite(tested: Sequence[Record]) -> list[Finding]:
    return [_finding(record, "it diverged: its test loss is infinite") for record in tested if not is_finite(record)]


def _texts(record: Record) -> tuple[tuple[Any, ...], ...]:
    sizes = ("document", "tokens", "labels", "words", "bytes")
    return tuple(tuple(row.get(name) for name in sizes) for row in document_rows(record))


def _certificate(tested: Sequence[Record]) -> list[Finding]:
    findings = []
    for record in tested:
        causal = (record.test["protocol"].get("certificate") or {}).get("causal")  # type: ignore[index]
        if causal is not True:
            findings.append(_finding(record, "it was not probed for reading the tokens that it predicts"))
    return findings


def _length(record: Record) -> Hashable:
    """What runs have in common that take equally many windows of one kind."""
    return record.windows, setting(record, "data", "window_len")


def _windows(study: Study, runs: Sequence[Record]) -> list[Finding]:
    findings = []
    for group in _grouped(runs, _length):
        taken: dict[str | None, int] = {}  # by the windows that most runs of a seed took: the first such seed
        for same_seed in _grouped(sorted(group, key=lambda record: record.seed), lambda record: record.seed):
            hashes = [(record, record.hashes.get("training_windows")) for record in same_seed]
            odd = {record.run for record, _, _ in _odd(study, hashes)}
            for record, digest in hashes:
                if record.run in odd:
                    text = f"other training windows than other runs of seed {record.seed}"
                    findings.append(_finding(record, text))
                elif taken.setdefault(digest, record.seed) != record.seed:
                    findings.append(_finding(record, f"its training windows are those of seed {taken[digest]} too"))
    return findings


def _first_windows(study: Study, runs: Sequence[Record]) -> Check:
    """Runs of other lengths, under other budgets, are compared as far as both went."""
    title = "Runs of one seed and unequal length took the same first training windows"
    seeds = _grouped(runs, lambda record: (record.seed, setting(record, "data", "window_len")))
    unequal = [group for group in seeds if len({record.windows for record in group}) > 1]
    if not unequal:
        return _check(title, [], is_possible=False)
    lacking = sum(not _first_batches(record) for group in unequal for record in group)
    n = sum(map(len, unequal))
    unchecked = f"{lacking} of {n} runs have no digest of their first windows in their records" if lacking else None
    return Check(title, [finding for group in unequal for finding in _first_odd(study, group)], unchecked)


def _first_odd(study: Study, group: Sequence[Record]) -> list[Finding]:
    """The runs of one seed that took other windows than most, each with the first of its digests that shows it."""
    findings: dict[str, Finding] = {}
    for n in sorted({n for record in group for n in _first_batches(record)}):
        known = [(record, digest) for record in group if (digest := _first_batches(record).get(n))]
        for record, _, _ in _odd(study, known):
            text = f"within its first {n:,} batches other training windows than other runs of seed {record.seed}"
            findings.setdefault(record.run, _finding(record, text))
    return list(findings.values())


def _first_batches(record: Record) -> dict[int, str]:
    """The digests of a run's first batches, by how many they are."""
    found = ((re.fullmatch(r"first_(\d+)_batches", name), digest) for name, digest in record.hashes.items())
    return {int(match[1]): digest for match, digest in found if match}


def _data(study: Study, runs: Sequence[Record]) -> list[Finding]:
    findings = []
    for name in ("data", "tokenizer"):
        for record, value, usual in _odd(study, ((record, record.hashes.get(name)) for record in runs)):
            findings.append(_finding(record, f"{name} is {_short(value)}, that of others {_short(usual)}"))
    return findings


def _weights(study: Study, runs: Sequence[Record]) -> list[Finding]:
    return [
        _finding(record, f"other initial weights than other runs of seed {record.seed}")
        for group in _grouped(runs, _start)
        for record, _, _ in _odd(study, ((record, record.hashes.get("initial_weights")) for record in group))
    ]


def _start(record: Record) -> Hashable:
    """What runs have in common that begin with the same weights."""
    return record.seed, size(record)


def size(record: Record) -> int:
    """The number of parameters without V3's map, which no other has."""
    history_len, compressed_len = (setting(record, "model", name) for name in ("history_len", "compressed_len"))
    is_v3 = record.class_path.endswith(".CompressedAttention")
    return record.parameters - (history_len * compressed_len if is_v3 and history_len and compressed_len else 0)


def _sizes(study: Study) -> list[Finding]:
    return [
        _finding(record, f"{value:,} parameters, others {usual:,}")
        for record, value, usual in _odd(study, ((record, size(record)) for record in _finals(study)))
    ]


def _grids(study: Study) -> list[Finding]:
    grids = {arm: [trial.learning_rate for trial in study.trials.get(arm, [])] for arm in study.arms}
    if not any(grids.values()):
        return []
    common = sorted(set.intersection(*(set(grid) for grid in grids.values())))
    if not common:
        arms = ", ".join(f"{arm}: {_rates(grid)}" for arm, grid in grids.items())
        return [Finding(f"no learning rate was tried for all ({arms})", frozenset(grids), None)]
    findings = []
    for arm in grids:
        unexplained = _unexplained(study.trials[arm], common)
        if unexplained:
            text = f"{arm}: {_rates(unexplained)} was tried beside the common {_rates(common)} without need"
            findings.append(Finding(text, frozenset([arm]), None))
    return findings


def _unexplained(trials: Sequence[Trial], common: Sequence[float]) -> list[float]:
    """The rates beyond the common grid that don't follow from a best one at its edge."""
    explained = set(common)
    rest = [trial.learning_rate for trial in trials if trial.learning_rate not in explained]
    while rest:
        best = best_trial([trial for trial in trials if trial.learning_rate in explained])
        if best is None:  # nothing is done yet that could explain it
            return []
        below, above = ([r for r in rest if r < min(explained)], [r for r in rest if r > max(explained)])
        if below and best.learning_rate == min(explained):
            step = max(below)
        elif above and best.learning_rate == max(explained):
            step = min(above)
        else:
            return rest
        explained.add(step)
        rest.remove(step)
    return []


def _grid(study: Study, arm: str) -> list[float]:
    """The learning rates that were tried for an arm, those at which it diverged among them."""
    return [trial.learning_rate for trial in study.trials.get(arm, []) if trial.is_done]


def _edges(study: Study) -> Check:
    """A best rate at the end of those tried may not be the best that there is: a warning, which forbids nothing."""
    findings, title = [], "No chosen learning rate lies at the edge of those tried"
    grids = {arm: study.trials.get(arm, []) for arm in study.arms}
    complete = {arm: trials for arm, trials in grids.items() if len(trials) > 1 and all(t.is_done for t in trials)}
    for arm, trials in complete.items():
        best, rates = best_trial(trials), [trial.learning_rate for trial in trials]
        if best is not None and best.learning_rate in (min(rates), max(rates)):
            end = "lowest" if best.learning_rate == min(rates) else "highest"
            text = f"{arm}: {best.learning_rate:g} is the {end} rate that was tried; one beyond it may be better"
            findings.append(Finding(text, frozenset(), None))
    return _check(title, findings, bool(complete))


def _chosen(study: Study) -> list[Finding]:
    findings = []
    for (arm, budget), records in study.finals.items():
        best = best_trial(study.trials.get(arm, []))
        for record in records:
            if best is not None and record.learning_rate != best.learning_rate:
                text = f"learning rate {record.learning_rate:g}, the best one tried is {best.learning_rate:g}"
                findings.append(_finding(record, text, budget))
    return findings


def _schedules(study: Study) -> list[Finding]:
    findings = []
    records = [record for (_, budget), group in study.finals.items() if budget == "windows" for record in group]
    for name, value_of in _SCHEDULE.items():
        for record, value, usual in _odd(study, ((record, value_of(record)) for record in records)):
            findings.append(_finding(record, f"{name}: {value}, others {usual}", "windows"))
    return findings


_SCHEDULE: dict[str, Callable[[Record], Hashable]] = {
    "steps": lambda record: record.steps,
    "warm-up": lambda record: setting(record, "model", "warmup_steps"),
    "schedule": lambda record: setting(record, "model", "schedule"),
    "last learning rate": lambda record: setting(record, "model", "final_learning_rate"),
    "windows per step": lambda record: record.windows / record.steps,
}


def spent(study: Study, record: Record, budget: str) -> float | None:
    """What a run used of a budget: windows, trained positions, FLOPs, or seconds as the timing pass measured them."""
    if budget == "seconds":
        seconds = study.seconds_per_step.get(record.arm)
        return None if seconds is None else record.steps * seconds
    return {"windows": record.windows, "positions": record.positions, "flops": record.flops}[budget]


def _allowed(study: Study, budget: str) -> float | None:
    """What the reference used of a budget; None: it isn't known yet."""
    reference = study.finals.get((study.reference, budget))
    return spent(study, reference[0], budget) if reference else None


def _budgets(study: Study) -> list[Finding]:
    findings = []
    for (_, budget), records in study.finals.items():
        allowed = _allowed(study, budget)
        for record in records:
            used = spent(study, record, budget)
            if allowed and used is not None and abs(used / allowed - 1) > _BUDGET_TOLERANCE:
                text = f"{used / allowed:.1%} of the {budget} of {study.reference}"
                findings.append(_finding(record, text, budget))
    return findings


def noise_is_sound(study: Study) -> bool:
    """Whether the runs for the noise floor differ by their seed alone."""
    return not _noise(study)


def _noise(study: Study) -> list[Finding]:
    def all_but_seed(record: Record) -> Hashable:
        texts = None if record.test is None else _texts(record)
        return (record.arm, record.learning_rate, record.steps, record.windows, record.parameters, texts)

    odd = _odd(study, ((record, all_but_seed(record)) for record in study.noise))
    repeated = [seed for seed, number in Counter(record.seed for record in study.noise).items() if number > 1]
    findings = [_finding(record, "it differs by more than its seed") for record, _, _ in odd]
    findings += _infinite([record for record in study.noise if record.test is not None])
    findings += [_finding(r, f"another run has seed {r.seed} too") for r in study.noise if r.seed in repeated]
    return [finding._replace(arms=frozenset()) for finding in findings]  # of no contrast, but of the noise floor


def _arms(records: Iterable[Record]) -> set[str]:
    return {record.arm for record in records}


def _finals(study: Study) -> list[Record]:
    return list({record.run: record for records in study.finals.values() for record in records}.values())


def _grouped(records: Iterable[Record], key: Callable[[Record], Any]) -> list[list[Record]]:
    groups: dict[Any, list[Record]] = {}
    for record in records:
        groups.setdefault(key(record), []).append(record)
    return list(groups.values())


def _rates(rates: Iterable[float]) -> str:
    return ", ".join(f"{rate:g}" for rate in rates)


def _short(value: Any) -> str:
    """A value, or the beginning of a hash."""
    return f"{value[:8]}…" if isinstance(value, str) and len(value) > 12 else str(value)
