"""The report of `llp test` and `llp validate`: a table on standard output, and files with its provenance in the run."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from llp.atomic_files import run_folder
from llp.checkpoints import reading
from llp.checkpoints.exported_folder import CHANGED
from llp.decoder.geometry import Geometry
from llp.errors import require
from llp.evaluation.causality_check import CausalityCheck, describe
from llp.evaluation.tables import readable, with_rule, write_csv, write_json
from llp.scoring.label_metric import LabelScore, label_metrics
from llp.scoring.metric import MeanLoss, Score, metrics
from llp.scoring.windows import WindowShape
from llp.training.run_record import git_commit, versions
from llp.training_module import TrainingModule

if TYPE_CHECKING:
    from datamodules.loaders import ScoringLoader
    from datamodules.synthetic import ExampleScoringLoader

Row = dict[str, Any]
"""Sizes and metrics of a split, a document or a bin of distances, by name."""

_COLUMNS = ("tokens", "words", "bytes", "loss", "perplexity", "word_perplexity", "bits_per_byte")
_LABEL_COLUMNS = ("labels", "correct", "nats", "loss", "accuracy")
_MOST_DOCUMENTS = 10
_UNLIKELY = 1e-6  # a less likely outcome is not taken for chance


class Report(NamedTuple):
    """What is reported of a score, beside its protocol."""

    content: Row
    """For the JSON file."""
    rows: list[Row]
    """For the CSV file."""
    text: str
    """A table for standard output."""


class TestReport(Callback):
    """Prints a table after a test or a stand-alone validation, and writes `test.json` or `validation.json`.

    The file lies in the run's folder, beside a CSV file with a row for the whole split and one for each of its
    documents, or for each bin of distances of a task.
    """

    __test__ = False  # not a test case, despite its name

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # At the very end: the progress bar is closed, and nothing is printed after the table.
        if trainer.state.fn in (TrainerFn.TESTING, TrainerFn.VALIDATING):
            assert isinstance(pl_module, TrainingModule)
            self._report(trainer, pl_module, is_test=trainer.state.fn == TrainerFn.TESTING)

    def _report(self, trainer: Trainer, model: TrainingModule, is_test: bool) -> None:
        limit = "limit_test_batches" if is_test else "limit_val_batches"
        remedy = "nothing was scored; set it above 0"
        require(hasattr(model, "score"), f"trainer.{limit}", getattr(trainer, limit), remedy)
        if isinstance(model.score, MeanLoss):
            return  # of a loader without a text; Lightning shows its metrics
        # On every rank: the first sums over the ranks, the second is broadcast.
        (n_scored, expected), log_dir = model.score.scored(), trainer.log_dir
        if not trainer.is_global_zero:
            return
        loader: Any = trainer.test_dataloaders if is_test else trainer.val_dataloaders
        checkpoint = trainer.ckpt_path or model.loaded_from
        protocol = {
            **model_protocol(model, checkpoint, str(trainer.precision)),
            **loader.protocol,
            "complete": n_scored == expected,
        }
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if is_test and isinstance(callback, CausalityCheck):
                protocol["certificate"] = callback.outcome
        if isinstance(model.score, LabelScore):
            report = label_report(model.score, loader, protocol)
        else:
            report = text_report(model.score, model.geometry, loader, protocol)
        folder = run_folder(checkpoint) if checkpoint else Path(log_dir or trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        path = write_json(folder / f"{loader.split}.json", {"protocol": protocol, **report.content})
        table = write_csv(folder / f"{loader.split}.csv", report.rows)
        print(report.text)
        if model.exported is not None and model.exported["weights_changed"]:
            print(CHANGED)
        print(f"Written to {path} and {table}")


def model_protocol(model: TrainingModule, ckpt_path: str | Path | None, precision: str) -> Row:
    """Which model was scored and how it was trained, and which software computed its metrics in which precision."""
    return {
        "architecture": reading.class_path(type(model)),
        "hyperparameters": dict(model.hparams),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "checkpoint": None if ckpt_path is None else str(ckpt_path),
        "checkpoint_sha256": None if ckpt_path is None else reading.sha256(ckpt_path),
        **({} if model.exported is None else {"exported": model.exported}),
        **model.trained,
        "settings_history": model.history,
        "initialized_from": model.initialized_from,
        "precision": precision,
        "versions": versions(),
        "git_commit": git_commit(),
    }


# Text


def text_report(score: Score, geometry: Geometry, loader: "ScoringLoader", protocol: Row) -> Report:
    """The report of a text. If the whole split was scored, the protocol takes in how much context its tokens had."""
    rows = score.rows()
    if protocol["complete"]:
        rows = with_unigram(rows, loader.unigram_nats())
        protocol |= scored_context(geometry, loader.window_shapes)
    rows = [{"split": loader.split, **row} for row in rows]
    text = format_table(rows, protocol)
    if not protocol["complete"]:
        n_scored, expected = score.scored()
        text += f"\nPARTIAL: {n_scored:,} of {expected:,} tokens were scored; words and bytes are scaled in proportion."
    return Report({"rows": rows}, rows, text)


def with_unigram(rows: Sequence[Row], nats: Sequence[float]) -> list[Row]:
    """The rows with the metrics of a unigram model as `unigram_*`, given its loss on each document."""
    extended = []
    for row, total in zip(rows, [sum(nats), *nats][: len(rows)], strict=True):
        unigram = metrics(total, row["tokens"], row["words"], row["bytes"])
        extended.append({**row, **{f"unigram_{name}": value for name, value in unigram.items()}})
    return extended


def scored_context(geometry: Geometry, window_shapes: Mapping[WindowShape, int]) -> dict[str, float | None]:
    """The number of tokens that a scored token was predicted from: least, mean and greatest.

    Args:
        geometry: The model's.
        window_shapes: Number of windows of each shape. The least is over those that are not their document's first;
            None if all are.
    """
    least, greatest, total, n_tokens = None, 0, 0, 0
    for (length, n_scored, is_first), number in window_shapes.items():
        context = geometry.context_lens(length)[length - n_scored :]
        total += int(context.sum()) * number
        n_tokens += n_scored * number
        greatest = max(greatest, int(context.max()))
        if not is_first:
            least = int(context.min()) if least is None else min(least, int(context.min()))
    return {"context_least": least, "context_mean": total / n_tokens, "context_greatest": greatest}


def format_table(rows: Sequence[Row], protocol: Row) -> str:
    """A table of the model's metrics and, below each row, the unigram model's.

    Args:
        rows: One for the whole split, or the part of it that was scored, then one for each document. The first ten
            documents of which anything was scored are shown.
        protocol: How they were scored.
    """
    table: list[list[str]] = [["split", "document", "model", *_COLUMNS]]
    name = protocol["architecture"].rpartition(".")[2]
    whole, *documents = rows
    documents = [document for document in documents if document["tokens"]]
    for row in [whole, *documents[:_MOST_DOCUMENTS]]:
        where = [row["split"], row["document"] or ("(all)" if protocol["complete"] else "(part)")]
        table.append([*where, name, *(readable(row[column]) for column in _COLUMNS)])
        if "unigram_loss" in row:
            table.append(["", "", "unigram", "", "", "", *(readable(row[f"unigram_{name}"]) for name in _COLUMNS[3:])])
    lines = with_rule(table, n_left=3)
    if len(documents) > _MOST_DOCUMENTS:
        lines.append(f"… and {len(documents) - _MOST_DOCUMENTS:,} more in {whole['split']}.csv")
    windows = f"Windows of {protocol['window_len']:,} tokens, stride {protocol['stride']:,}"
    if "context_mean" in protocol:
        least = protocol["context_least"]  # None if every document is one window
        later = "" if least is None else f", and after a document's first window from at least {least:,}"
        mean, greatest = protocol["context_mean"], protocol["context_greatest"]
        windows += f": a token is predicted from {mean:,.1f} tokens on average, from at most {greatest:,}{later}"
    lines += [f"{windows}.", f"Words: {protocol['word_count']}."]
    if whole["plain_words"] != whole["words"]:
        lines.append(
            f"Counting only whitespace-separated words ({whole['plain_words']:,}), the word perplexity is "
            f"{readable(whole['plain_word_perplexity'])}."
        )
    return "\n".join([*lines, *_causality(protocol)])


def _causality(protocol: Row) -> list[str]:
    return [describe(protocol["certificate"])] if "certificate" in protocol else []


# Tasks


def label_report(score: LabelScore, loader: "ExampleScoringLoader", protocol: Row) -> Report:
    """The report of a task; the protocol takes in what came of the labels beyond the model's reach.

    Raises:
        SettingError: If the model knows labels that it can't know.
    """
    protocol["beyond_reach"] = score.beyond_reach()
    require_chance(**protocol["beyond_reach"], candidates=protocol["candidates"])
    answers = protocol["answers"]
    chance = {"chance_loss": math.log(answers), "chance_accuracy": 1 / answers}
    row = {"split": loader.split, "document": None, **score.row(), **chance}
    distances = score.distances(protocol["distance_bin"])
    text = format_labels(row, distances, protocol)
    if not protocol["complete"]:
        n_scored, expected = score.scored()
        text += f"\nPARTIAL: {n_scored:,} of {expected:,} labels were scored."
    return Report({"rows": [row], "distances": distances}, label_rows(row, distances), text)


def require_chance(labels: int, correct: int, candidates: int) -> None:
    """Raise a `SettingError` if a model predicts labels that it can't know, since it then reads more than it says.

    A guess among `candidates` is right with a probability of at most 1 / `candidates`, whatever came before. The number
    of correct labels then exceeds a bound no more often than under a binomial distribution.
    """
    from scipy.stats import binom  # it takes a second to import, and only tasks need it

    remedy = (
        f"{correct:,} of {labels:,} labels whose source lies beyond its reach are correct; a guess gets one of "
        f"{candidates:,}. The model reads more than context_lens says. No metric is reported; correct that"
    )
    require(binom.sf(correct - 1, labels, 1 / candidates) >= _UNLIKELY, "model", "its reach", remedy)


def label_rows(row: Row, distances: Sequence[Row]) -> list[Row]:
    """The metrics of the whole split, then those of each bin of distances, `first` to `last`."""
    rows = [{**row, "first": None, "last": None}]
    rows += [{**one, **label_metrics(one["labels"], one["correct"], one["nats"])} for one in distances]
    return [{"split": row["split"], **{name: one[name] for name in ("first", "last", *_LABEL_COLUMNS)}} for one in rows]


def format_labels(row: Row, distances: Sequence[Row], protocol: Row) -> str:
    """A table of the metrics of the whole split, of a guess, and by distance."""
    table = [["split", "distance", "model", "labels", "accuracy", "loss"]]
    for one in label_rows(row, distances):
        if one["first"] is None:
            name = protocol["architecture"].rpartition(".")[2]
            where = [row["split"], "(all)" if protocol["complete"] else "(part)", name]
        else:
            first, last = one["first"], one["last"]
            where = ["", f"{first:,}" if first == last else f"{first:,}-{last:,}", ""]
        table.append([*where, *(readable(one[column]) for column in ("labels", "accuracy", "loss"))])
    table.insert(2, ["", "", "chance", "", readable(row["chance_accuracy"]), readable(row["chance_loss"])])
    lines = with_rule(table, n_left=3)
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
    return "\n".join([*lines, *_causality(protocol)])
