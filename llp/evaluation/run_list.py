"""Runs side by side, from the small files in their folders alone: what differs, what it took, what came of it."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from tqdm import tqdm

from llp.atomic_files import checked_json, checked_text
from llp.errors import require
from llp.evaluation.tables import aligned, readable
from llp.training.run_lock import is_held

_NO_SETTINGS = {"name", "model.class_path", "trainer.default_root_dir", "data.init_args.cache_dir"}
"""The run's name, its architecture, which has a column of its own, and where files lie."""
_CONFIG, _RECORD, _VALIDATION, _TEST = "config.yaml", "run.json", "validation.json", "test.json"


@dataclass(frozen=True)
class Score:
    """The figures of a validation or a test after `step` optimizer steps, of the whole split if it is `complete`."""

    step: int | None
    complete: bool
    loss: float
    word_perplexity: float | None
    bits_per_byte: float | None
    """None: of a task without text, which has an accuracy."""
    accuracy: float | None
    text: str | None = None
    """Fingerprint of the text, or of a task's examples, where the file says it."""

    @property
    def rank(self) -> float:
        """What the best is the least of."""
        return self.loss if self.bits_per_byte is None else self.bits_per_byte


@dataclass
class Run:
    """What the files in a run's folder say; None: nothing does."""

    name: str
    state: str
    architecture: str | None
    settings: dict[str, Any]
    """The run's configuration: dotted name to value."""
    parameters: int | None = None
    step: int | None = None
    total_steps: int | None = None
    trained_tokens: int | None = None
    training_seconds: float | None = None
    validation: Score | None = None
    """The best one: of those that trained the run, or `llp validate`'s."""
    test: Score | None = None
    damaged: list[str] = field(default_factory=list)
    """Files that can't be read."""


def find_runs(folder: Path) -> list[Run]:
    """The runs in a folder, the best first: by the test's bits per byte (of a task: its loss), then the validation's.

    Args:
        folder: It holds the runs' folders, or the `lightning_logs` that does.

    Raises:
        SettingError: If there are none.
    """
    inner = folder / "lightning_logs"
    folder = inner if inner.is_dir() else folder
    files = (_CONFIG, _RECORD, _VALIDATION, _TEST, "checkpoints")
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    runs = [_read_run(path) for path in paths if any((path / name).exists() for name in files)]
    require(len(runs) > 0, "FOLDER", folder, "there are no runs in it; name the folder that holds those of `llp fit`")
    return sorted(runs, key=lambda run: (_rank(run.test), _rank(run.validation), run.name))


def _rank(score: Score | None) -> float:
    return score.rank if score is not None and score.complete else math.inf


def _read_run(folder: Path) -> Run:
    damaged: list[str] = []

    def read(name: str, parse: Callable[[str], Any], make: Callable[[Any], Any], nothing: Any) -> Any:
        """What `make` takes from a file; `nothing` if it is not there, or damaged."""
        try:
            return make(parse((folder / name).read_text(encoding="utf-8")))
        except FileNotFoundError:
            return nothing
        except (OSError, ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError):
            damaged.append(name)
            return nothing

    settings = read(_CONFIG, _settings, _flat, {})
    record = read(_RECORD, checked_json, _record, {})
    scores = [record.pop("validation", None), read(_VALIDATION, checked_json, _report_score, None)]
    known = [score for score in scores if score is not None]
    return Run(
        name=folder.name,
        state=_state(folder, record.pop("state", None)),
        architecture=record.pop("architecture", None) or settings.get("model.class_path"),
        settings=settings,
        **record,
        validation=min(known, key=lambda score: (not score.complete, score.rank), default=None),
        test=read(_TEST, checked_json, _report_score, None),
        damaged=damaged,
    )


def _settings(text: str) -> Any:
    return yaml.safe_load(checked_text(text))


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as dotted names."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _state(folder: Path, recorded: str | None) -> str:
    """What a run says of itself, unless it was killed and couldn't say that it no longer runs."""
    if recorded is None:
        return "unknown" if (folder / "checkpoints").exists() else "not started"
    return "unfinished" if recorded == "running" and not is_held(folder) else recorded


def _record(content: dict[str, Any]) -> dict[str, Any]:
    """What a run says of itself."""
    names = ("architecture", "state", "parameters", "step", "total_steps", "trained_tokens", "training_seconds")
    record = {name: content[name] for name in names}
    best = content["best_validation"]
    record["validation"] = best and _score(best, best["step"], best["complete"])
    return record


def _report_score(content: dict[str, Any]) -> Score | None:
    """What `llp test` or `llp validate` has written."""
    protocol = content["protocol"]
    return _score(content["rows"][0], protocol["step"], protocol["complete"], protocol["data_fingerprint"])


def _score(row: dict[str, Any], step: int | None, complete: bool, text: str | None = None) -> Score | None:
    """A row's figures; None where they were not finite."""
    if row["loss"] is None:
        return None
    if "accuracy" in row:
        return Score(step, complete, float(row["loss"]), None, None, float(row["accuracy"]), text)
    if row["bits_per_byte"] is None:
        return None
    return Score(step, complete, float(row["loss"]), row["word_perplexity"], float(row["bits_per_byte"]), None, text)


def differing_settings(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """The settings that are not the same in all runs: the shortest name that tells them apart, to each run's value.

    None stands where a run has no such setting. Names of runs, the architecture and places of files are left out.
    """
    names = dict.fromkeys(name for run in runs for name in run.settings)  # in their order
    values = {name: [run.settings.get(name) for run in runs] for name in names}
    differing = {
        name: column
        for name, column in values.items()
        if name not in _NO_SETTINGS and any(value != column[0] for value in column)
    }
    paths = {name: _path(name) for name in differing}
    return {_shortest(paths[name], list(paths.values())): column for name, column in differing.items()}


def _path(name: str) -> tuple[str, ...]:
    """The parts of a setting's name that say something: a class is named after where it stands."""
    return tuple(part for part in name.split(".") if part not in ("init_args", "class_path"))


def _shortest(path: tuple[str, ...], others: list[tuple[str, ...]]) -> str:
    """The shortest end of a path that is no other's."""
    for length in range(1, len(path)):
        if sum(other[-length:] == path[-length:] for other in others) == 1:
            return ".".join(path[-length:])
    return ".".join(path)


def rows_of(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """All that is known of the runs, as rows of a table for programs; a setting that differs is `settings.NAME`."""
    differing = differing_settings(runs)
    return [
        {
            "run": run.name,
            "state": run.state,
            "architecture": run.architecture,
            **{f"settings.{name}": column[number] for name, column in differing.items()},
            **{name: getattr(run, name) for name in ("parameters", "step", "total_steps", "trained_tokens")},
            "training_seconds": run.training_seconds,
            **_columns("validation", run.validation),
            **_columns("test", run.test),
            "damaged": " ".join(run.damaged),
        }
        for number, run in enumerate(runs)
    ]


def _columns(split: str, score: Score | None) -> dict[str, Any]:
    names = ("step", "complete", "loss", "word_perplexity", "bits_per_byte", "accuracy")
    return {f"{split}_{name}": None if score is None else getattr(score, name) for name in names}


def format_runs(runs: Sequence[Run]) -> str:
    """The runs as a table of text, with notes below it."""
    differing = differing_settings(runs)
    head = ["run", "state", "architecture", *differing, "parameters", "steps", "tokens", "time"]
    figures = _shown_figures(runs)
    table = [[*head, *figures]]
    for number, run in enumerate(runs):
        table.append(
            [
                run.name,
                run.state,
                (run.architecture or "-").rpartition(".")[2],
                *(_value(column[number]) for column in differing.values()),
                _number(run.parameters),
                _steps(run),
                _number(run.trained_tokens),
                "-" if run.training_seconds is None else tqdm.format_interval(run.training_seconds),
                *(_figure(getattr(run, split), name) for split, name in figures.values()),
            ]
        )
    lines = aligned(table, n_left=3)
    lines.insert(1, "-" * max(map(len, lines)))
    return "\n".join([*lines, *_notes(runs)])


def _shown_figures(runs: Sequence[Run]) -> dict[str, tuple[str, str]]:
    """The columns of figures, and where each stands in a run: those of text, of tasks, or of both."""
    scores = [score for run in runs for score in (run.validation, run.test) if score is not None]
    has_tasks = any(score.accuracy is not None for score in scores)
    has_text = not has_tasks or any(score.accuracy is None for score in scores)
    columns = {"val loss": ("validation", "loss")}
    if has_tasks:
        columns |= {"val accuracy": ("validation", "accuracy"), "test accuracy": ("test", "accuracy")}
    if has_text:
        columns["val bits/byte"] = ("validation", "bits_per_byte")
        columns |= {"test bits/byte": ("test", "bits_per_byte"), "test word perplexity": ("test", "word_perplexity")}
    return columns


def _notes(runs: Sequence[Run]) -> list[str]:
    notes = []
    if any(score is not None and not score.complete for run in runs for score in (run.validation, run.test)):
        notes.append("* on a part of the split only; such a figure does not count for the order.")
    if len({run.test.text for run in runs if run.test is not None}) > 1:
        notes.append("The runs were not all tested on the same text: their figures can't be compared.")
    notes += [f"Damaged: {run.name}/{name}" for run in runs for name in run.damaged]
    return notes


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _steps(run: Run) -> str:
    return _number(run.step) if run.total_steps in (None, run.step) else f"{run.step:,}/{run.total_steps:,}"


def _figure(score: Score | None, name: str) -> str:
    """A figure, with a star before it where it is that of a part."""
    value = None if score is None else getattr(score, name)
    return "-" if score is None or value is None else ("" if score.complete else "*") + readable(float(value))


def _value(value: Any) -> str:
    """A setting's value; of a class only its name."""
    if value is None:
        return "-"
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return text.rpartition(".")[2] if isinstance(value, str) and value.startswith(("llp.", "datamodules.")) else text
