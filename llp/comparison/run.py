"""How a run of a comparison is executed and recorded: training, test, losses of the tokens."""

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from llp.checkpoints import reading
from llp.checkpoints.fingerprints import weights_digest
from llp.comparison.folder import ComparisonFolder, read_json
from llp.comparison.plan import Arm, Plan, PlannedRun
from llp.comparison.records import Record
from llp.comparison.spec import Settings, portable
from llp.comparison.workers import Work
from llp.errors import require

_PROTOCOL = (
    "window_len", "stride", "complete", "context_least", "context_mean", "context_greatest", "data_fingerprint",
    "tokenizer_fingerprint", "word_count", "official_words", "certificate", "precision",
)  # fmt: skip
"""The part of a test's protocol that doesn't change when the run is repeated."""
_DOCUMENT = ("document", "tokens", "words", "plain_words", "bytes", "nats")


class ComparisonWork(Work):
    """The runs of a comparison: each is trained, tested and recorded."""

    def __init__(self, plan: Plan, folder: ComparisonFolder) -> None:
        self.plan, self.folder, self.runs = plan, folder, {run.name: run for run in plan.runs}
        self.names, self.to_do = list(self.runs), [run.name for run in plan.to_do()]

    def settings(self, name: str) -> Settings:
        return self.plan.settings(self.runs[name])

    def stages(self, name: str) -> dict[str, list[str]]:
        run, place, config = self.runs[name], self.folder.run(name), str(self.folder.config(name))
        found = super().stages(name) if run.steps else {}
        untrained = ["--config", config, "--trainer.default_root_dir", str(place)]
        model = ["--ckpt_path", str(place / "checkpoints/last.ckpt")] if run.steps else untrained
        changed = self.plan.spec.arms[run.arm].get("test_init_args", {})
        model += [f"--model.init_args.{name}={json.dumps(value)}" for name, value in changed.items()]
        if run.is_tested:
            found["test.json"] = ["test", *model]
        if run.is_tested and self.plan.spec.slices:
            found["slices.json"] = ["predict", *model]
        return found

    def is_stage_done(self, name: str, file: str) -> bool:
        """Training is when `last.ckpt` is of its end."""
        place, steps = self.folder.run(name), self.runs[name].steps
        if not (place / file).exists() or file != "run.json":
            return (place / file).exists()
        last = place / "checkpoints/last.ckpt"
        is_trained = read_json(place / file)["step"] >= steps and last.exists()
        return is_trained and bool(reading.read(str(last))["global_step"] == steps)

    def record(self, name: str, settings: Settings) -> None:
        run, place = self.runs[name], self.folder.run(name)
        self.folder.write_record(make_record(place, self.stages(name), run, self.plan.arms[run.arm], settings))
        (place / "token_losses.parquet").unlink(missing_ok=True)  # large, and its slices are in the record


def make_record(
    place: Path, commands: Mapping[str, list[str]], run: PlannedRun, arm: Arm, settings: Settings
) -> Record:
    """The record of a run in a folder, whose stages `commands` are done.

    Raises:
        SettingError: If a file is damaged, or the test is of another checkpoint.
    """
    found = _of_training(place) if run.steps else _of_test(read_json(place / "test.json")["protocol"], settings)
    threads = found.pop("threads")
    return Record(
        run=run.name,
        arm=run.arm,
        seed=run.seed,
        learning_rate=run.learning_rate,
        steps=run.steps,
        settings=portable(settings),
        commands=[f"{threads}llp {shlex.join(command)}" for command in commands.values()],
        parameters=arm.parameters,
        pairs_per_window=arm.pairs,
        flops_per_window=arm.flops,
        positions_per_window=arm.positions,
        windows=run.steps * arm.windows_per_step,
        test=_test(place / "test.json", run.steps) if "test.json" in commands else None,
        slices=read_json(place / "slices.json") if "slices.json" in commands else None,
        **found,
    )


def _of_training(place: Path) -> dict[str, Any]:
    """What a training left in a run's folder."""
    content, checkpoint = read_json(place / "run.json"), reading.read(str(place / "checkpoints/last.ckpt"))
    data_settings, tokenizer = checkpoint["settings_history"][0]["settings"], checkpoint["tokenizer"]
    text = {
        "data": data_settings.get("data.data_fingerprint"),
        "tokenizer": None if tokenizer is None else tokenizer["fingerprint"],
    }
    return {
        "class_path": checkpoint["architecture"],
        "curve": content["validations"],
        "hashes": {
            **checkpoint["fingerprints"],
            "final_weights": weights_digest(checkpoint["state_dict"].items()),
            **{name: digest for name, digest in text.items() if digest is not None},
        },
        "commit": content["commit"],  # of the process that trained
        "versions": content["versions"],
        "device": content["device"],
        "threads": f"OMP_NUM_THREADS={content['threads']} ",
    }


def _of_test(protocol: Mapping[str, Any], settings: Settings) -> dict[str, Any]:
    """The same of a pretrained model that was tested without training."""
    return {
        "class_path": protocol["architecture"],
        "curve": [],
        "hashes": {name: protocol[f"{name}_fingerprint"] for name in ("data", "tokenizer")},
        "commit": protocol["git_commit"],
        "versions": protocol["versions"],
        "device": settings["trainer"].get("accelerator", "auto"),
        "threads": "",
    }


def _test(path: Path, step: int) -> dict[str, Any]:
    """The report of a test without what would differ if the run were repeated, and of each document only its sizes."""
    report = read_json(path)
    protocol = report["protocol"]
    remedy = f"it isn't the checkpoint of step {step}; remove the file to repeat the test"
    require((protocol["step"] or 0) == step, "test", f"step {protocol['step']} in {path}", remedy)
    whole, *documents = report["rows"]
    rows = [whole, *({name: row[name] for name in _DOCUMENT if name in row} for row in documents)]
    return {**report, "protocol": {name: protocol.get(name) for name in _PROTOCOL}, "rows": rows}
