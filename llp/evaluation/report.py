"""The report of `llp test` and `llp validate`: a table on standard output, and files with its provenance in the run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from llp.atomic_files import run_folder
from llp.checkpoints.exported_folder import CHANGED
from llp.errors import require
from llp.evaluation.causality_check import CausalityCheck
from llp.evaluation.label_report import label_report
from llp.evaluation.provenance import model_protocol
from llp.evaluation.tables import Report, format_table, write_csv, write_json
from llp.scoring.label_metric import LabelScore
from llp.scoring.metric import figures


class TestReport(Callback):
    """Prints a table after a test or a stand-alone validation, and writes `test.json` or `validation.json`.

    The file lies in the run's folder, beside a CSV file with all rows: the whole split and each of its documents, or of
    a task each bin of distances.
    """

    __test__ = False  # not a test case, despite its name

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # The very end: the progress bar is closed, and nothing is printed after the table.
        if trainer.state.fn in (TrainerFn.TESTING, TrainerFn.VALIDATING):
            self._report(trainer, pl_module, is_test=trainer.state.fn == TrainerFn.TESTING)

    def _report(self, trainer: Trainer, model: Any, is_test: bool) -> None:
        limit = "limit_test_batches" if is_test else "limit_val_batches"
        remedy = "nothing was scored; set it above 0"
        require(hasattr(model, "score"), f"trainer.{limit}", getattr(trainer, limit), remedy)
        # On every rank: one sums over them, one is broadcast.
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
        report_of = label_report if isinstance(model.score, LabelScore) else text_report
        content, rows, text = report_of(model, loader, protocol)
        folder = run_folder(checkpoint) if checkpoint else Path(log_dir or trainer.default_root_dir)
        path = write_json(folder / f"{loader.split}.json", {"protocol": protocol, **content})
        table = write_csv(folder / f"{loader.split}.csv", rows)
        print(text)
        if model.exported is not None and model.exported["weights_changed"]:
            print(CHANGED)
        print(f"Written to {path} and {table}")


def text_report(model: Any, loader: Any, protocol: dict[str, Any]) -> Report:
    """The report of a text; says in the protocol how much context its tokens had."""
    rows = model.score.rows()
    if protocol["complete"]:  # both are those of the whole split
        rows = with_unigram(rows, loader.unigram_nats())
        protocol |= scored_context(model, loader.window_shapes)
    rows = [{"split": loader.split, **row} for row in rows]
    text = format_table(rows, protocol)
    if not protocol["complete"]:
        scored, expected = model.score.scored()
        partial = f"{scored:,} of {expected:,} tokens were scored; words and bytes are scaled in proportion."
        text += f"\nPARTIAL: {partial}"
    return {"rows": rows}, rows, text


def with_unigram(rows: Sequence[dict[str, Any]], nats: Sequence[float]) -> list[dict[str, Any]]:
    """The rows with the figures of a unigram model beside the model's own, as `unigram_*`; its `nats` per document."""
    baseline = [sum(nats), *nats][: len(rows)]
    return [
        {
            **row,
            **{
                f"unigram_{name}": value
                for name, value in figures(total, row["tokens"], row["words"], row["bytes"]).items()
            },
        }
        for row, total in zip(rows, baseline, strict=True)
    ]


def scored_context(model: Any, window_shapes: Mapping[tuple[int, int, bool], int]) -> dict[str, float | None]:
    """How many tokens a scored token was predicted from: the least after a document's first window, mean and greatest.

    Args:
        model: A `LanguageModel`, which knows its context in a window.
        window_shapes: The number of windows by length, scored positions, and whether it is its document's first.
    """
    least, greatest, total, n_tokens = None, 0, 0, 0
    for (length, n_scored, is_first), number in window_shapes.items():
        context = model.geometry.context_lens(length)[length - n_scored :]
        total += int(context.sum()) * number
        n_tokens += n_scored * number
        greatest = max(greatest, int(context.max()))
        if not is_first:
            least = int(context.min()) if least is None else min(least, int(context.min()))
    return {"context_least": least, "context_mean": total / n_tokens, "context_greatest": greatest}
