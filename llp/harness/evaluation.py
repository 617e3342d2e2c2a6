"""A model's figures on the harness's tasks, and their report."""

import logging
import math
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.evaluator import evaluate

from llp.errors import require
from llp.evaluation.tables import aligned, readable
from llp.harness.harness_model import HarnessModel
from llp.harness.task_loading import load_tasks
from llp.text_model import TextModel

WORD_COUNT = (
    "The harness's word counts are not a benchmark's: it counts the pieces between white space, one more for a text "
    "that ends in it, and its task wikitext scores WikiText-2 after a detokenizer but divides by the words and bytes "
    "before it. Its word perplexities must not stand beside those of `llp test`."
)
_BOOTSTRAPS = 1000


def evaluate_tasks(
    model: TextModel,
    tasks: str,
    write_documents: Callable[[], Path],
    include_path: str | None = None,
    limit: int | None = None,
    n_shots: int | None = None,
    batch_size: int = 8,
) -> list[dict[str, Any]]:
    """The figures of a model on tasks of the harness, in a form that JSON can hold: for each task or group a row.

    Args:
        model: The model with its tokenizer, in evaluation mode.
        tasks: Their names, or those of groups, tags or YAML files, with commas between them.
        write_documents: Writes the documents that this project's own tasks are made from, and returns the .jsonl file;
            called if there is one among the tasks.
        include_path: A folder with YAML files of tasks.
        limit: Take the first so many examples of each task; null: all.
        n_shots: How many solved examples stand before each; null: as many as the task says.
        batch_size: How many texts or windows to compute side by side.

    Raises:
        SettingError: If there is no such task, it can't be had here, or a value can't be used.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    require(limit is None or limit >= 1, "limit", limit, "set it to 1 or more, or leave it out")
    require(n_shots is None or n_shots >= 0, "n_shots", n_shots, "set it to 0 or more, or leave it out")
    harness_model = HarnessModel(model, batch_size)
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    loaded = load_tasks(names, write_documents, include_path, n_shots)
    with redirect_stdout(sys.stderr):  # the harness prints what it is at
        results: Any = evaluate(harness_model, loaded, limit=limit, bootstrap_iters=_BOOTSTRAPS, log_samples=False)
    rows = [_row(name, results, loaded["tasks"].get(name)) for name in results["results"]]
    return [row for row in rows if row["figures"]]  # a group may have none of its own


def _row(name: str, results: dict[str, Any], task: Any) -> dict[str, Any]:
    """What is kept of a task, or of a group, which has no `task`."""
    found = results["results"][name]
    row = {
        "task": name,
        "version": results["versions"].get(name),
        "n_shots": results["n-shot"].get(name),
        "examples": found.get("sample_len"),
        "figures": _figures(found),
    }
    if task is None:
        return row
    row |= {"output_type": task.OUTPUT_TYPE, "examples_in_all": results["n-samples"][name]["original"]}
    if task.OUTPUT_TYPE == "loglikelihood_rolling":
        row |= _sizes(task)
    return row


def _figures(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Metric, filter, value and standard error, which some metrics don't have, of a task's entries."""
    figures = []
    for key, value in found.items():
        metric, comma, kept = key.partition(",")
        if comma and not metric.endswith("_stderr"):
            error = found.get(f"{metric}_stderr,{kept}")
            figures.append(
                {"metric": metric, "filter": kept, "value": _number(value), "standard_error": _number(error)}
            )
    return figures


def _number(value: Any) -> float | None:
    """A figure; None: it has none, in whichever way the harness says so."""
    return float(value) if isinstance(value, int | float | np.number) else None


def _sizes(task: Any) -> dict[str, float]:
    """Nats of the texts that were scored, their words and bytes, and those that the harness divides by."""
    instances = task.instances
    texts, targets = [one.args[0] for one in instances], [task.doc_to_target(one.doc) for one in instances]
    return {
        "nats": -math.fsum(one.resps[0] for one in instances),
        "words": sum(len(text.split()) for text in texts),
        "bytes": sum(len(text.encode()) for text in texts),
        "harness_words": sum(map(task.count_words, targets)),
        "harness_bytes": sum(map(task.count_bytes, targets)),
    }


def harness_protocol(model: TextModel, batch_size: int, limit: int | None) -> dict[str, Any]:
    """How the tasks were carried out."""
    window_len, stride = model.window
    return {
        "window_len": window_len,
        "stride": stride,
        "batch_size": batch_size,
        "limit": limit,
        "harness": f"lm-eval {metadata.version('lm-eval')}",
        "word_count": WORD_COUNT,
    }


def format_results(rows: list[dict[str, Any]], protocol: dict[str, Any]) -> str:
    """The figures as a table, and how they were found."""
    table = [["task", "metric", "version", "shots", "examples", "value", "standard error"]]
    for row in rows:
        for number, figure in enumerate(row["figures"]):
            name = figure["metric"] if figure["filter"] == "none" else f"{figure['metric']} ({figure['filter']})"
            first = [row["task"], name, *(_shown(row[key]) for key in ("version", "n_shots", "examples"))]
            rest = ["", name, "", "", ""]
            error = figure["standard_error"]
            value = "" if figure["value"] is None else readable(figure["value"])
            table.append([*(rest if number else first), value, "" if error is None else f"± {readable(error)}"])
    lines = aligned(table, n_left=2)
    lines.insert(1, "-" * max(map(len, lines)))
    lines += [_of_texts(row) for row in rows if "nats" in row]
    lines.append(f"Windows of {protocol['window_len']:,} tokens, stride {protocol['stride']:,}; {protocol['harness']}.")
    if any("nats" in row for row in rows):
        lines.append(protocol["word_count"])
    if protocol["limit"] is not None:
        lines.append(f"PARTIAL: the first {protocol['limit']:,} examples of each task at most.")
    return "\n".join(lines)


def _of_texts(row: dict[str, Any]) -> str:
    return (
        f"{row['task']}: {row['nats']:,.4f} nats; {row['words']:,} words and {row['bytes']:,} bytes were scored, "
        f"and the harness divides by {row['harness_words']:,} and {row['harness_bytes']:,}."
    )


def _shown(value: Any) -> str:
    return "" if value is None else str(value)
