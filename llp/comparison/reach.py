"""The section of a report on how far back the models read: losses by position, on recall tokens, and accuracy."""

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from llp.comparison.markdown import NOTHING, image, number, run_names, table
from llp.comparison.study import Record, Study


def section(study: Study, drawn: Collection[str]) -> list[str]:
    """How far back the models read."""
    images = [
        *image(drawn, "position.png", "Loss by position in the window"),
        *image(drawn, "recall.png", "Loss on recall tokens by distance"),
        *image(drawn, "accuracy.png", "Accuracy by distance"),
    ]
    lines = ["## How far back the models read", "", *images]
    if not images:
        lines += [_why_not_sliced(study), ""]
    lines += _accuracy_table(study)
    rows = [row for arm, records in study.first_finals.items() if (row := _recall_row(arm, records))]
    if rows:
        lines += [
            "Recall tokens complete a bigram that was seen earlier in their context.",
            "",
            *table(["arm", "loss on recall tokens", "loss on others", "share of recall tokens", "runs"], rows),
            "",
        ]
    return lines


def _why_not_sliced(study: Study) -> str:
    if any(record.test for records in study.finals.values() for record in records):
        return "Not measured: the losses by position and by distance are left out with `slices: false`."
    return "Nothing is known yet: no run has been tested."


def _recall_row(arm: str, records: Sequence[Record]) -> list[str]:
    known = [
        record for record in records if record.slices and record.slices.get("recall") and record.slices.get("other")
    ]
    if not known:
        return []
    recall = [part for record in known for part in record.slices["recall"]]  # type: ignore[index]
    other = [record.slices["other"] for record in known]  # type: ignore[index]
    (recall_tokens, recall_nats), (other_tokens, other_nats) = _total(recall), _total(other)
    if not (recall_tokens and other_tokens):
        return []
    share = recall_tokens / (recall_tokens + other_tokens)
    losses = [number(recall_nats / recall_tokens), number(other_nats / other_tokens)]
    return [arm, *losses, f"{share:.1%}", run_names(known)]


def _total(parts: Iterable[Mapping[str, Any]]) -> tuple[int, float]:
    parts = list(parts)
    return sum(part["tokens"] for part in parts), math.fsum(part["nats"] for part in parts)


def _accuracy_table(study: Study) -> list[str]:
    """The accuracy of each contestant at each distance; nothing for a text."""
    runs = {arm: group for arm, group in study.first_finals.items() if all(map(_distances, group))}
    if not runs:
        return []
    spans = sorted({(part["first"], part["last"]) for group in runs.values() for r in group for part in _distances(r)})
    rows = [[_span(*span), *(_accuracy_cell(records, span) for records in runs.values())] for span in spans]
    note = "Share of correct labels by the number of tokens to the answer: the mean over the seeds (least to greatest)."
    return [*table(["distance", *runs], rows), "", note, ""]


def _distances(record: Record) -> Sequence[Mapping[str, Any]]:
    return (record.test or {}).get("distances", [])


def _span(first: int, last: int) -> str:
    return f"{first}" if first == last else f"{first} to {last}"


def _accuracy_cell(records: Sequence[Record], span: tuple[int, int]) -> str:
    """The mean of the runs' accuracies at distances first to last, and their range."""
    parts = [part for record in records for part in _distances(record) if (part["first"], part["last"]) == span]
    shares = [part["correct"] / part["labels"] for part in parts if part["labels"]]
    if not shares:
        return NOTHING
    mean = number(math.fsum(shares) / len(shares), 3)
    return mean if len(shares) == 1 else f"{mean} ({number(min(shares), 3)} to {number(max(shares), 3)})"
