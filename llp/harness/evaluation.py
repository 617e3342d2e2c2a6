"""Tasks of the harness, run on a trained model."""

import logging
import random
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from difflib import get_close_matches
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
from lm_eval.evaluator import evaluate
from lm_eval.tasks import TaskManager
from lm_eval.utils import make_table

from llp.errors import SettingError, require
from llp.harness.harness_model import HarnessModel
from llp.text_model import TextModel

OWN_TASK = "rolling_perplexity"
"""The task that needs no network: the loss of whole documents, as `llp test` computes it."""
_REPORTED = ("results", "groups", "group_subtasks", "versions", "n-shot", "n-samples", "higher_is_better")
_BOOTSTRAPS = 1000


def evaluate_tasks(
    model: TextModel,
    tasks: str,
    documents: Callable[[], list[str]],
    include_path: str | None = None,
    limit: int | None = None,
    n_shots: int | None = None,
    batch_size: int = 8,
) -> dict[str, Any]:
    """The harness's results of a model on tasks, in a form that JSON can hold.

    Args:
        model: The model with its tokenizer, in evaluation mode.
        tasks: Their names, or those of groups, tags or YAML files, with commas between them.
        documents: Returns the texts of `rolling_perplexity`; called if it is among the tasks.
        include_path: A folder with YAML files of tasks.
        limit: Take only the first examples of each task, this many; null: all.
        n_shots: The number of solved examples before each; null: as many as the task says.
        batch_size: How many texts or windows to compute side by side.

    Raises:
        SettingError: If there is no such task, it can't be loaded, or a value can't be used.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    require(limit is None or limit >= 1, "limit", limit, "set it to 1 or more, or leave it out")
    require(n_shots is None or n_shots >= 0, "n_shots", n_shots, "set it to 0 or more, or leave it out")
    harness_model = HarnessModel(model, batch_size)
    names = [name.strip() for name in tasks.split(",") if name.strip()]
    require(len(names) > 0, "tasks", tasks, "name some, with commas between them")
    random.seed(DEFAULT_RANDOM_SEED)  # as the harness's command line does: some tasks draw
    np.random.seed(DEFAULT_OTHER_SEED)
    with redirect_stdout(sys.stderr):  # the harness reports its progress there
        loaded = _load(names, documents, include_path)
        for name, task in loaded["tasks"].items():
            is_safe = not getattr(task, "UNSAFE_CODE", False)
            require(is_safe, "tasks", name, "it runs what the model writes as a program; leave it out")
            if n_shots is not None and task.get_config("num_fewshot") != 0:  # 0 is the task's own decision
                task.set_config(key="num_fewshot", value=n_shots)
            elif task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
        results: Any = evaluate(harness_model, loaded, limit=limit, bootstrap_iters=_BOOTSTRAPS, log_samples=False)
    return {name: results[name] for name in _REPORTED if name in results}


def _load(names: list[str], documents: Callable[[], list[str]], include_path: str | None) -> dict[str, Any]:
    """The tasks of these names; the harness's own are looked through only if a name is none of the others'."""
    folder = None if include_path is None else Path(include_path).expanduser()
    is_folder = folder is None or folder.is_dir()
    require(is_folder, "include_path", include_path, "there is no such folder; name that of the tasks' files")
    manager = TaskManager(include_path=folder, include_defaults=False)

    def unknown() -> list[str]:
        others = [name for name in names if name != OWN_TASK and name not in manager.task_index]
        return [name for name in others if not (name.endswith(".yaml") and Path(name).is_file())]

    if unknown():
        manager = TaskManager(include_path=folder)
    for name in unknown():
        close = get_close_matches(name, [OWN_TASK, *manager.all_tasks], n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        remedy = f"there is no such task, neither in --include_path nor in the harness{hint}"
        raise SettingError("tasks", name, remedy)
    own = _own_task(documents()) if OWN_TASK in names else None
    try:
        return manager.load([own if name == OWN_TASK else name for name in names])
    except Exception as error:  # whatever a task's file, its code or its data raise
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
        remedy = f"can't be loaded ({reason}); most tasks need the network for their data"
        raise SettingError("tasks", ",".join(names), remedy) from error


def _own_task(documents: list[str]) -> dict[str, Any]:
    """The loss of whole documents. There is no word perplexity: the harness counts words unlike any benchmark."""
    dataset = {"test": Dataset.from_dict({"text": documents})}
    metrics = [
        {"metric": "bits_per_byte", "aggregation": "bits_per_byte", "higher_is_better": False},
        {"metric": "byte_perplexity", "aggregation": "weighted_perplexity", "higher_is_better": False},
    ]
    return {
        "task": OWN_TASK,
        "custom_dataset": lambda **_: dataset,
        "test_split": "test",
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "text",
        "num_fewshot": 0,
        "metric_list": metrics,
        "metadata": {"version": 1.0},
    }


def harness_protocol(model: TextModel, batch_size: int, limit: int | None) -> dict[str, Any]:
    """How the tasks were run."""
    window_len, stride = model.window
    return {
        "window_len": window_len,
        "stride": stride,
        "batch_size": batch_size,
        "limit": limit,
        "harness": f"lm-eval {metadata.version('lm-eval')}",
    }


def format_results(results: dict[str, Any], protocol: dict[str, Any]) -> str:
    """The harness's own table, and how it came about."""
    lines = [make_table(results).rstrip()]
    lines.append(f"Windows of {protocol['window_len']:,} tokens, stride {protocol['stride']:,}; {protocol['harness']}.")
    if protocol["limit"] is not None:
        lines.append(f"PARTIAL: the first {protocol['limit']:,} examples of each task at most.")
    return "\n".join(lines)
