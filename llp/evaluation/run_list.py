"""`llp runs`: runs side by side, read from the small files in their folders alone."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from tqdm import tqdm

from llp.atomic_files import checked_json
from llp.errors import require
from llp.evaluation.tables import readable, with_rule
from llp.training.run_lock import is_held

_NO_SETTINGS = ("name", "model.class_path", "trainer.default_root_dir", "data.init_args.cache_dir")
"""The run's name, its architecture, which has a column of its own, and paths."""
_CONFIG, _RECORD, _TEST = "config.yaml", "run.json", "test.json"
_OF_RUN = ("architecture", "state", "best_validation")
_RECORDED = ("parameters", "step", "total_steps", "trained_tokens", "training_seconds")
_SCORE = ("step", "complete", "loss", "word_perplexity", "bits_per_byte", "accuracy")
_METRICS = {
    "val loss": "validation_loss",
    "val accuracy": "validation_accuracy",
    "test accuracy": "test_accuracy",
    "val bits/byte": "validation_bits_per_byte",
    "test bits/byte": "test_bits_per_byte",
    "test word perplexity": "test_word_perplexity",
}

Row = dict[str, Any]


def find_runs(folder: Path) -> pd.DataFrame:
    """The runs in a folder, the best first: by the test's bits per byte (of a task: its loss), then the validation's.

    Args:
        folder: It holds the runs' folders, or the `lightning_logs` that does.

    Returns:
        One row per run. The columns are `run`, `state`, `architecture`, each setting that is not the same in all runs
        as `settings.NAME`, what the run recorded of itself, the best validation as `validation_*`, the test as
        `test_*`, and `damaged`, the files that can't be read. What is not known is missing.

    Raises:
        SettingError: If there are none.
    """
    inner = folder / "lightning_logs"
    folder = inner if inner.is_dir() else folder
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    files = (_CONFIG, _RECORD, _TEST, "checkpoints")
    rows = [_read_run(path) for path in paths if any((path / name).exists() for name in files)]
    require(len(rows) > 0, "FOLDER", folder, "there are no runs in it; name the folder that holds those of `llp fit`")
    rows.sort(key=_order)
    settings = differing_settings([row.pop("settings") for row in rows])
    runs = pd.DataFrame(rows, dtype=object)
    n = runs.columns.get_loc("architecture") + 1
    return pd.concat([runs.iloc[:, :n], settings.add_prefix("settings."), runs.iloc[:, n:]], axis=1)


def _order(row: Row) -> tuple[float, float, float, str]:
    """What the best run has the least of; infinite without a score."""
    metrics = {}
    for split in ("test", "validation"):
        bits, loss = row[f"{split}_bits_per_byte"], row[f"{split}_loss"]
        metrics[split] = math.inf if loss is None else float(loss if bits is None else bits)
    whole = [metrics[split] if row[f"{split}_complete"] else math.inf for split in metrics]
    return whole[0], whole[1], metrics["validation"], row["run"]


def _read_run(folder: Path) -> Row:
    damaged: list[str] = []

    def read(name: str, make: Callable[[str], Row]) -> Row:
        """What `make` takes from a file; nothing if the file does not exist or is damaged."""
        try:
            return make((folder / name).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError):
            damaged.append(name)
            return {}

    settings = read(_CONFIG, lambda text: _flat(yaml.safe_load(text)))
    record = read(_RECORD, lambda text: {name: checked_json(text)[name] for name in (*_OF_RUN, *_RECORDED)})
    test = read(_TEST, lambda text: _reported(checked_json(text)))
    return {
        "run": folder.name,
        "state": _state(folder, record.get("state")),
        "architecture": record.get("architecture") or settings.get("model.class_path"),
        "settings": settings,
        **{name: record.get(name) for name in _RECORDED},
        **{f"validation_{name}": (record.get("best_validation") or {}).get(name) for name in _SCORE},
        **{f"test_{name}": test.get(name) for name in (*_SCORE, "data_fingerprint")},
        "damaged": " ".join(damaged),
    }


def _flat(settings: Row, prefix: str = "") -> Row:
    """Nested settings as dotted names."""
    flat: Row = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _state(folder: Path, recorded: str | None) -> str:
    """The state that a run recorded, unless it was killed and could not record that it no longer runs."""
    if recorded is None:
        return "unknown" if (folder / "checkpoints").exists() else "not started"
    return "unfinished" if recorded == "running" and not is_held(folder) else recorded


def _reported(content: Row) -> Row:
    """The score that `llp test` wrote, or nothing if it is not finite."""
    row, protocol = content["rows"][0], content["protocol"]
    if row["loss"] is None or row["accuracy" if "accuracy" in row else "bits_per_byte"] is None:
        return {}
    return {**row, **{name: protocol[name] for name in ("step", "complete", "data_fingerprint")}}


def differing_settings(settings: list[Row]) -> pd.DataFrame:
    """The settings that are not the same in all runs, one row per run, under short names that tell them apart.

    A setting that a run does not have is None; a run without any is not compared. Names of runs, the architecture and
    paths are left out.
    """
    table = pd.DataFrame(settings, dtype=object)
    table = table.where(table.notna(), None)
    known = table[[bool(of_run) for of_run in settings]]
    table = table[[name for name in table if name not in _NO_SETTINGS and known[name].map(repr).nunique() > 1]]
    # A class is named after the setting that holds it.
    paths = [name.replace(".init_args", "").removesuffix(".class_path") for name in table]
    ends = [path.rpartition(".")[2] for path in paths]
    return table.set_axis([path if ends.count(end) > 1 else end for path, end in zip(paths, ends, strict=True)], axis=1)


def format_runs(runs: pd.DataFrame) -> str:
    """The runs as a table of text, with notes below it."""
    settings = [name for name in runs if name.startswith("settings.")]
    metrics = {name: column for name, column in _METRICS.items() if runs[column].notna().any()}
    head = ["run", "state", "architecture", *(name.removeprefix("settings.") for name in settings)]
    table = [[*head, "parameters", "steps", "tokens", "time", *metrics]]
    for run in runs.to_dict("records"):
        steps = _number(run["step"])
        if run["total_steps"] not in (None, run["step"]):
            steps += f"/{run['total_steps']:,}"
        about = [run["run"], run["state"], (run["architecture"] or "-").rpartition(".")[2]]
        seconds = "-" if run["training_seconds"] is None else tqdm.format_interval(run["training_seconds"])
        trained = [_number(run["parameters"]), steps, _number(run["trained_tokens"]), seconds]
        scores = [_metric(run, name) for name in metrics.values()]
        table.append([*about, *(_value(run[name]) for name in settings), *trained, *scores])
    return "\n".join([*with_rule(table, n_left=3), *_notes(runs)])


def _notes(runs: pd.DataFrame) -> list[str]:
    notes = []
    if (runs[["validation_complete", "test_complete"]] == False).any(axis=None):  # noqa: E712  None is neither
        notes.append("* on a part of the split only; such runs come after those with a metric of the whole split.")
    if runs.loc[runs["test_loss"].notna(), "test_data_fingerprint"].nunique(dropna=False) > 1:
        notes.append("The runs were not all tested on the same text: their metrics can't be compared.")
    notes += [f"Damaged: {run.run}/{name}" for run in runs.itertuples() for name in run.damaged.split()]
    return notes


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _metric(run: Row, name: str) -> str:
    """A metric, with a star before it if only a part of the split was scored."""
    if run[name] is None:
        return "-"
    return ("" if run[f"{name.partition('_')[0]}_complete"] else "*") + readable(float(run[name]))


def _value(value: object) -> str:
    """A setting's value; of a class only its name."""
    if value is None:
        return "-"
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text.rpartition(".")[2] if isinstance(value, str) and value.startswith(("llp.", "datamodules.")) else text
