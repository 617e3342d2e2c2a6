"""The report of `llp test`: a table on standard output, and `test.json` with its provenance beside the run."""

import csv
import io
import json
import math
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core.apply_func import apply_to_collection

from llp import checkpoints
from llp.certificate import Certificate
from llp.checkpoints import keep_older
from llp.errors import require
from llp.scoring import figures

_CERTIFICATE = {
    True: "Certified: no logit of this model changed with a later token, and each probed one did with earlier tokens.",
    None: "NOT certified: whether this model reads what it predicts was not probed.",
}
_COLUMNS = ("tokens", "words", "bytes", "loss", "perplexity", "word_perplexity", "bits_per_byte")
_PACKAGES = ("llp", "torch", "lightning", "torchmetrics", "datasets", "sentencepiece", "numpy")


class TestReport(Callback):
    """Prints the table after a test or a validation of its own; a test is written to the run's `test.json` too."""

    __test__ = False  # no test case, whatever its name

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # The very end: the progress bar is closed, and nothing is printed after the table.
        if trainer.state.fn in (TrainerFn.TESTING, TrainerFn.VALIDATING):
            self._report(trainer, pl_module, write=trainer.state.fn == TrainerFn.TESTING)

    def _report(self, trainer: Trainer, model: Any, write: bool) -> None:
        loader: Any = trainer.test_dataloaders if write else trainer.val_dataloaders
        limited = not hasattr(model, "score")
        require(not limited, "trainer", "limit_test_batches or limit_val_batches", "nothing was scored; set it above 0")
        rows = model.score.rows()  # on every rank: it sums over them
        if not trainer.is_global_zero:
            return
        protocol = {**model_protocol(model, trainer.ckpt_path), **loader.protocol}
        expected = sum(document.tokens for document in loader.documents)
        protocol["complete"] = rows[0]["tokens"] == expected
        if protocol["complete"]:  # both are those of the whole split
            rows = with_unigram(rows, loader.unigram_nats())
            protocol |= scored_context(model, loader.window_shapes)
        rows = [{"split": loader.split, **row} for row in rows]
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if write and isinstance(callback, Certificate):
                protocol["certificate"] = callback.outcome
        print(format_table(rows, protocol))
        if not protocol["complete"]:
            print(f"PARTIAL: {rows[0]['tokens']:,} of {expected:,} tokens were scored; words and bytes in proportion.")
        if write:
            folder = checkpoints.run_folder(trainer.ckpt_path) if trainer.ckpt_path else Path(trainer.default_root_dir)
            path = write_json(folder / "test.json", {"protocol": protocol, "rows": rows})
            table = write_csv(folder / "test.csv", rows)
            print(f"Written to {path} and {table}")


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


def model_protocol(model: Any, ckpt_path: str | Path | None) -> dict[str, Any]:
    """Which model was scored, how it was trained and what computed its figures."""
    return {
        "architecture": checkpoints.architecture(model),
        "hyperparameters": dict(model.hparams),
        "checkpoint": None if ckpt_path is None else str(ckpt_path),
        "checkpoint_sha256": None if ckpt_path is None else checkpoints.sha256(ckpt_path),
        **model.trained,
        "precision": str(model.trainer.precision),
        "versions": {"python": platform.python_version(), **{name: metadata.version(name) for name in _PACKAGES}},
        "git_commit": git_commit(),
    }


def scored_context(model: Any, window_shapes: Mapping[tuple[int, int, bool], int]) -> dict[str, float | None]:
    """How many tokens a scored token was predicted from: the least after a document's first window, and the mean.

    Args:
        model: A `LanguageModel`, which knows its context in a window.
        window_shapes: How often a window has this length, scores so many positions and is its document's first.
    """
    least, total, n_tokens = None, 0, 0
    for (length, n_scored, is_first), number in window_shapes.items():
        context = model.context_lens(length)[length - n_scored :]
        total += int(context.sum()) * number
        n_tokens += n_scored * number
        if not is_first:
            least = int(context.min()) if least is None else min(least, int(context.min()))
    return {"context_least": least, "context_mean": total / n_tokens}


def git_commit() -> str | None:
    """The commit of the source tree that runs, with `-dirty` behind it where files differ; None outside of git."""
    try:
        # Fails where this file is not the repository's own: an installed copy inside somebody else's.
        _git("ls-files", "--error-unmatch", Path(__file__).name)
        return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    folder = Path(__file__).parent
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def format_table(rows: Sequence[dict[str, Any]], protocol: dict[str, Any]) -> str:
    """The rows as a table of text: for each the model's figures, and below them the unigram model's."""
    table: list[list[str]] = [["split", "document", "model", *_COLUMNS]]
    name = protocol["architecture"].rpartition(".")[2]
    for row in rows:
        where = [row["split"], row["document"] or "(all)"]
        table.append([*where, name, *(_cell(row[column]) for column in _COLUMNS)])
        if "unigram_loss" in row:
            table.append(["", "", "unigram", "", "", "", *(_cell(row[f"unigram_{name}"]) for name in _COLUMNS[3:])])
    lines = aligned(table, n_left=3)
    lines.insert(1, "-" * max(map(len, lines)))
    windows = f"Windows of {protocol['window_len']:,} tokens, stride {protocol['stride']:,}"
    if "context_mean" in protocol:
        least = "-" if protocol["context_least"] is None else f"{protocol['context_least']:,}"
        windows += (
            f": a token is predicted from {least} tokens at least after a document's first window, "
            f"{protocol['context_mean']:,.1f} on average"
        )
    lines += [f"{windows}.", f"Words: {protocol['word_count']}."]
    if rows[0]["plain_words"] != rows[0]["words"]:
        lines.append(
            f"By whitespace-separated words alone ({rows[0]['plain_words']:,}) the word perplexity is "
            f"{rows[0]['plain_word_perplexity']:,.4f}."
        )
    if "certificate" in protocol:
        lines.append(_CERTIFICATE[protocol["certificate"]["causal"]])
    return "\n".join(lines)


def aligned(table: Sequence[Sequence[str]], n_left: int) -> list[str]:
    """The rows of a table as lines of text; the first `n_left` columns are aligned to the left, the others right."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if number < n_left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in table
    ]


def _cell(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4f}"


def write_json(path: Path, content: dict[str, Any]) -> Path:
    """Write a report; see `_write`."""
    return _write(path, json.dumps(_finite(content), indent=1) + "\n")


def write_csv(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write the rows as a table with a head; see `_write`."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return _write(path, text.getvalue())


def _write(path: Path, text: str) -> Path:
    """Write a file whole or not at all; one that is there already is kept under a numbered name."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    keep_older(path)
    temporary.rename(path)
    return path


def _finite(content: Any) -> Any:
    """JSON knows no nan and no infinity: null stands for both."""
    return apply_to_collection(content, float, lambda value: value if math.isfinite(value) else None)
