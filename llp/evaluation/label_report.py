"""What is reported of a task: how many labels are known, by their distance, and that none beyond reach are."""

import math
from collections.abc import Sequence
from typing import Any

from llp.errors import require
from llp.evaluation.tables import CERTIFICATE, Report, aligned, readable
from llp.scoring.label_metric import label_metrics

_UNLIKELY = 1e-6  # how rarely chance alone may be taken for knowledge


def require_chance(labels: int, correct: int, candidates: int) -> None:
    """Raise a `SettingError` if labels are known that a model can't know: a check of its mask.

    A guess among `candidates` gets each right with a probability of 1 / `candidates` at most, whatever it got before.
    By Chernoff's bound, the share a = correct / labels or more comes about with a probability of at most
    exp(-labels * KL(a | 1 / candidates)).
    """
    share, chance = correct / max(1, labels), 1 / candidates
    if share <= chance:
        return
    divergence = share * math.log(share / chance)
    if share < 1:
        divergence += (1 - share) * math.log((1 - share) / (1 - chance))
    remedy = (
        f"{correct:,} of {labels:,} labels whose source lies beyond its reach are correct; a guess gets one of "
        f"{candidates:,}. The model reads more than context_lens says. No figure is reported; correct that"
    )
    require(math.exp(-labels * divergence) >= _UNLIKELY, "model", "its reach", remedy)


def label_report(model: Any, loader: Any, protocol: dict[str, Any]) -> Report:
    """The report of a task; says in the protocol what came of the labels beyond the model's reach.

    Raises:
        SettingError: If labels are known that the model can't know.
    """
    score, answers = model.score, protocol["answers"]
    protocol["beyond_reach"] = score.beyond_reach()
    require_chance(**protocol["beyond_reach"], candidates=protocol["candidates"])
    chance = {"chance_loss": math.log(answers), "chance_accuracy": 1 / answers}
    row = {"split": loader.split, "document": None, **score.row(), **chance}
    distances = score.distances(protocol["distance_bin"])
    text = format_labels(row, distances, protocol)
    if not protocol["complete"]:
        scored, expected = score.scored()
        text += f"\nPARTIAL: {scored:,} of {expected:,} labels were scored."
    return {"rows": [row], "distances": distances}, csv_rows(row, distances), text


def csv_rows(row: dict[str, Any], distances: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The whole split, and below it each bin of distances, `first` to `last`, with its figures."""
    columns = ("labels", "correct", "nats", "loss", "accuracy")
    rows = [{**row, "first": None, "last": None}]
    rows += [{**one, **label_metrics(one["labels"], one["correct"], one["nats"])} for one in distances]
    return [{"split": row["split"], **{name: one[name] for name in ("first", "last", *columns)}} for one in rows]


def format_labels(row: dict[str, Any], distances: Sequence[dict[str, Any]], protocol: dict[str, Any]) -> str:
    """Format the figures as a table of text: of the whole split, of a guess, and by distance."""
    name = protocol["architecture"].rpartition(".")[2]
    table = [["split", "distance", "model", "labels", "accuracy", "loss"]]
    for one in csv_rows(row, distances):
        where = _range(one["first"], one["last"]) or ("(all)" if protocol["complete"] else "(part)")
        figures = [readable(one[column]) for column in ("labels", "accuracy", "loss")]
        table.append(["" if one["first"] else row["split"], where, "" if one["first"] else name, *figures])
    table.insert(2, ["", "", "chance", "", readable(row["chance_accuracy"]), readable(row["chance_loss"])])
    lines = aligned(table, n_left=3)
    lines.insert(1, "-" * max(map(len, lines)))
    lines.append(
        f"Windows of {protocol['window_len']:,} tokens with {protocol['labels_per_window']:,} labels each; "
        "distance: from a label back to the token that it repeats."
    )
    beyond = protocol["beyond_reach"]
    if beyond["labels"]:
        lines.append(
            f"Beyond the reach of the model: {beyond['correct']:,} of {beyond['labels']:,} labels are correct, no more "
            "than by chance."
        )
    if "certificate" in protocol:
        lines.append(CERTIFICATE[protocol["certificate"]["causal"]])
    return "\n".join(lines)


def _range(first: int | None, last: int | None) -> str:
    if first is None:
        return ""
    return f"{first:,}" if first == last else f"{first:,}-{last:,}"
