"""From the files of a finished run to its record."""

import shlex
from pathlib import Path
from typing import Any

import yaml

from llp.atomic_files import checked_json
from llp.checkpoints import reading
from llp.checkpoints.fingerprints import weights_digest
from llp.comparison.folder import ComparisonFolder, read_json
from llp.comparison.plan import Contestant, PlannedRun, portable
from llp.comparison.study import Record
from llp.errors import require

_PROTOCOL = (
    "window_len",
    "stride",
    "complete",
    "context_least",
    "context_mean",
    "context_greatest",
    "data_fingerprint",
    "tokenizer_fingerprint",
    "word_count",
    "official_words",
    "certificate",
    "precision",
)
"""Of the report's protocol, what does not change when a run is repeated."""
_DOCUMENT = ("document", "tokens", "words", "plain_words", "bytes", "nats")


def commands(folder: ComparisonFolder, run: PlannedRun, with_slices: bool) -> dict[str, list[str]]:
    """The subcommands of `llp` that carry out a run, in their order, by the file that shows that each is done."""
    name, place = run.name, folder.run(run.name)
    stages = {"run.json": ["fit", "--config", str(folder.config(name)), "--name", name, "--ckpt_path", "auto"]}
    last = str(place / "checkpoints/last.ckpt")
    if run.is_tested:
        stages["test.json"] = ["test", "--ckpt_path", last]
    if run.is_tested and with_slices:
        stages["slices.json"] = ["predict", "--ckpt_path", last]
    return stages


def is_stage_done(place: Path, file: str, run: PlannedRun) -> bool:
    """Whether a file in the run's folder says that its stage is done."""
    if file != "run.json":
        return (place / file).exists()
    last = place / "checkpoints/last.ckpt"
    if not (place / file).exists() or not last.exists():
        return False
    return read_run(place)["step"] >= run.steps and bool(reading.read(str(last))["global_step"] == run.steps)


def read_run(place: Path) -> dict[str, Any]:
    """What a run says of itself.

    Raises:
        SettingError: If that is damaged.
    """
    return read_json(place / "run.json", f"remove {place}, and the run is repeated")


def progress(place: Path) -> int:
    """The optimizer steps that a run has taken, as of its latest validation."""
    return int(_said(place).get("step", 0))


def has_diverged(place: Path) -> bool:
    """Whether a run says that a loss or gradient that was not finite has ended it."""
    return _said(place).get("state") == "diverged"


def _said(place: Path) -> dict[str, Any]:
    """What a run says of itself; nothing if it hasn't begun."""
    try:
        return checked_json((place / "run.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}


def record(folder: ComparisonFolder, run: PlannedRun, contestant: Contestant, stages: dict[str, list[str]]) -> Record:
    """What is kept of a run whose stages are done.

    Raises:
        SettingError: If the files are not those of this run.
    """
    place = folder.run(run.name)
    content = read_run(place)
    checkpoint = reading.read(str(place / "checkpoints/last.ckpt"))
    step = checkpoint["global_step"]
    remedy = f"the run has {run.steps} steps; remove the folder, and it is run again"
    require(step == run.steps == content["step"], "step", f"{step} in {place}", remedy)
    test = _test(place / "test.json", step) if "test.json" in stages else None
    slices = read_json(place / "slices.json") if "slices.json" in stages else None
    config = yaml.safe_load(folder.config(run.name).read_text(encoding="utf-8"))
    return Record(
        run=run.name,
        arm=run.arm,
        class_path=checkpoint["architecture"],
        seed=run.seed,
        learning_rate=run.learning_rate,
        steps=run.steps,
        settings=portable(config),
        commands=[f"OMP_NUM_THREADS={content['threads']} llp {shlex.join(stage)}" for stage in stages.values()],
        parameters=contestant.parameters,
        pairs_per_window=contestant.pairs,
        flops_per_window=contestant.flops,
        positions_per_window=contestant.positions,
        windows=run.steps * contestant.windows_per_step,
        curve=content["validations"],
        test=test,
        slices=slices,
        hashes={
            **checkpoint["fingerprints"],
            "final_weights": weights_digest(checkpoint["state_dict"].items()),
            **_text_hashes(checkpoint),
        },
        commit=content["commit"],  # of the process that trained
        versions=content["versions"],
        device=content["device"],
    )


def _text_hashes(checkpoint: dict[str, Any]) -> dict[str, str]:
    settings = checkpoint["settings_history"][0]["settings"]
    tokenizer = checkpoint["tokenizer"]
    found = {"data": settings.get("data.data_fingerprint")}
    found["tokenizer"] = None if tokenizer is None else tokenizer["fingerprint"]
    return {name: digest for name, digest in found.items() if digest is not None}


def _test(path: Path, step: int) -> dict[str, Any]:
    """The report of a test without what would differ if the run were repeated, and its documents' sizes alone."""
    report = read_json(path)
    remedy = f"that is not the checkpoint of step {step}; remove the file, and the test is repeated"
    require(report["protocol"]["step"] == step, "test", f"step {report['protocol']['step']} in {path}", remedy)
    protocol = {name: report["protocol"].get(name) for name in _PROTOCOL}
    whole, *documents = report["rows"]
    rows = [whole, *({name: row[name] for name in _DOCUMENT if name in row} for row in documents)]
    return {**{key: value for key, value in report.items() if key not in ("protocol", "rows")},
            "protocol": protocol, "rows": rows}  # fmt: skip
