"""`llp compare`: architectures trained and scored on equal terms, from a specification to a report."""

import os
import shlex
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from datamodules.language_data import LanguageDataModule
from datamodules.prepared_folder import read_about
from datamodules.text import TextDataModule
from llp.commands.configurations import find_configuration, read_configuration
from llp.commands.parser import Parser
from llp.comparison.folder import ComparisonFolder
from llp.comparison.plan import Contestant, Plan, variants
from llp.comparison.preview import preview
from llp.comparison.report import write_report
from llp.comparison.slurm import submit
from llp.comparison.specification import Ablation, Settings, Specification, merged
from llp.comparison.timing import timed, training_step
from llp.comparison.workers import Workers
from llp.errors import require
from llp.language_model import LanguageModel
from llp.training.throughput import matrix_rate
from llp.training.training_window import training_window

_SCRIPT = Path("configs/slurm/compare.sbatch")
_UTILIZATION = 0.3  # of the matrix rate, which --plan counts with before anything has been timed


def compare(
    spec: Path,
    plan: bool = False,
    time: bool = False,
    report: bool = False,
    retry: bool = False,
    workers: int = 1,
    slurm: int | None = None,
    run: str | None = None,
    root: Path = Path("lightning_logs"),
) -> None:
    """Plan, run or report a comparison; whatever is there already is not repeated.

    Args:
        spec: What is compared: a YAML file such as configs/compare/smoke.yaml.
        plan: Only list the runs, with their predicted cost.
        time: Only time a step of each arm, all in turns, for the budget of equal seconds.
        report: Only report what is there.
        retry: Try the runs that failed again.
        workers: How many runs at a time share the cores of this machine.
        slurm: Submit the runs as one array job, this many at a time.
        run: Only this run.
        root: The folder of all runs; comparisons/ is in it.
    """
    for setting, value in (("workers", workers), ("slurm", slurm)):
        require(value is None or value >= 1, setting, value, "set it to 1 or more")
    comparison = Comparison(find_configuration(spec), root)
    if plan:
        print(comparison.preview())
        return
    if retry:
        comparison.folder.forget_failures()
    if time:
        comparison.time(workers)
        return
    if slurm is not None:
        comparison.keep_specification()
        script = find_configuration(_SCRIPT)
        print(submit(comparison.folder, comparison.plan(), comparison.source, script, slurm))
        return
    if not report:
        comparison.carry_out(workers, run)
    if run is None:
        comparison.report()
    comparison.require_success(run)


class Comparison:
    """A specification, its contestants and its folder.

    Args:
        source: The file of the specification.
        root: The folder of all runs.

    Raises:
        SettingError: If the specification, or an arm with what is shared, can't be used.
    """

    def __init__(self, source: Path, root: Path) -> None:
        self.source = source
        self.specification = read_specification(source)
        self.folder = ComparisonFolder(root, self.specification.name)
        self.arms = {
            arm: _built(self.specification, settings) for arm, settings in variants(self.specification).items()
        }
        self.contestants = {arm: _contestant(self.specification, *built) for arm, built in self.arms.items()}

    def plan(self, choose_all: bool = False) -> Plan:
        """The plan as of now."""
        folder = self.folder
        known = folder.records(), folder.failed(), folder.timing()
        return Plan(self.specification, self.contestants, *known, choose_all=choose_all)

    def keep_specification(self) -> None:
        self.folder.write_specification(self.specification)

    def preview(self) -> str:
        """All runs with their cost, before anything starts."""
        rate = self.specification.assumed_rate
        if rate is None:
            rate = _UTILIZATION * matrix_rate(torch.device("cpu"), torch.float32)
        return preview(self.plan(choose_all=True), rate)

    def time(self, workers: int) -> None:
        """Measure a step of each arm, all in turns, on what a run uses where so many run at a time."""
        timing = self.folder.path / "timing.json"
        remedy = "it is there already, and the runs at equal seconds follow it; remove it to measure anew"
        require(not timing.exists(), "time", timing, remedy)
        torch.set_num_threads(_threads(workers))
        trainer = self.specification.shared.get("trainer", {})
        accelerator, precision = trainer.get("accelerator", "auto"), trainer.get("precision", "32-true")
        steps = {}
        for arm in self.specification.arms:
            model, data = self.arms[arm]
            settings = variants(self.specification)[arm]["class_path"], dict(model.hparams)
            n_batches = trainer.get("accumulate_grad_batches", 1)
            burn_in = model.burn_in_len(data.burn_in)
            size = data.batch_size, burn_in, data.window_len, n_batches, accelerator, precision
            steps[arm] = partial(training_step, *settings, *size)
        device = torch.cuda.get_device_name() if torch.cuda.is_available() and accelerator != "cpu" else "cpu"
        self.folder.write_timing(timed(steps, 10, device))

    def carry_out(self, workers: int, only: str | None) -> None:
        """Run what is to be run on this machine."""
        self.keep_specification()
        data = next(iter(self.arms.values()))[1]
        data.prepare_data()  # once, not in every process
        self._require_same_text(data)
        if "seconds" in self.specification.budgets and self.folder.timing() is None and only is None:
            self.time(workers)
        names = [run.name for run in self.plan().runs()]
        require(only is None or only in names, "run", only, f"it is none of the runs now: {', '.join(names)}")
        Workers(self.folder, self.plan, workers, _threads(workers), only).work()

    def _require_same_text(self, data: Any) -> None:
        """Refuse to go on with records of another text, or of another tokenizer; their runs count as done."""
        if not isinstance(data, TextDataModule):
            return
        about, records = read_about(data.prepared_folder()), self.folder.records()
        done = [run.name for run in self.plan().runs() if run.name in records]
        for name in ("data", "tokenizer"):
            digest = about[f"{name}_fingerprint"]
            others = [run for run in done if records[run].hashes.get(name, digest) != digest]
            what = f"{len(others)} of {len(done)} records are of another one, {', '.join(others[:3])} among them"
            remedy = f"{what}; give back what they were made with, or another name to the comparison"
            require(not others, f"fingerprint of the {name}", digest, remedy)

    def require_success(self, only: str | None) -> None:
        """Raise a `SettingError` if a run failed, so that whoever called knows it from the exit status."""
        failed = [name for name in self.folder.failed() if only in (None, name)]
        remedy = f"failed; see {self.folder.path / 'logs'}, and try again with --retry"
        require(not failed, "runs", ", ".join(failed), remedy)

    def report(self) -> None:
        """Write the report of what is there, and say what came out."""
        root = self.folder.path.parent.parent
        where = "" if root == Path("lightning_logs") else f" --root {shlex.quote(str(root))}"
        command = f"llp compare {shlex.quote(os.path.relpath(self.source))}{where}"
        for path in write_report(self.plan().study(command), self.folder.path):
            print(f"Written to {path}")


def _threads(workers: int) -> int:
    """The share of this machine's cores that each of so many workers gets."""
    return max(1, len(os.sched_getaffinity(0)) // workers)


def read_specification(source: Path) -> Specification:
    """The specification in a YAML file, on top of the configurations that its `base` names, relative to its folder.

    Raises:
        SettingError: If it can't be read, or a value can't be used.
    """
    settings = read_configuration(str(source))
    base = [read_configuration(str(source.parent / path)) for path in settings.pop("base", [])]
    settings["shared"] = merged(*base, settings.get("shared", {}))
    parser = Parser(prog="llp compare")
    parser.add_class_arguments(Specification, "spec", fail_untyped=False)
    # Not instantiated by the parser, which would build the models and the data that it finds in the dictionaries.
    checked = parser.parse_object({"spec": settings}).spec.as_dict()
    ablations = {name: Ablation(**ablation) for name, ablation in checked.pop("ablations").items()}
    return Specification(**checked, ablations=ablations)


def _built(specification: Specification, arm: Settings) -> tuple[Any, Any]:
    """Model and data of an arm; of the model nothing is allocated."""
    shared = specification.shared
    parser = Parser(prog="llp compare")
    parser.add_lightning_class_args(LanguageDataModule, "data", subclass_mode=True)
    data = parser.instantiate(parser.parse_object({"data": shared.get("data", {})})).data
    parser = Parser(prog="llp compare")
    parser.add_lightning_class_args(LanguageModel, "model", subclass_mode=True)
    size = {"init_args": {"vocab_size": data.vocab_size}}
    settings: Mapping[str, Any] = merged(shared.get("model", {}), arm, size)
    model = parser.instantiate(parser.parse_object({"model": settings})).model
    _check_scoring(specification, model, data)
    with torch.device("meta"):
        model.configure_model()
    return model, data


def _check_scoring(specification: Specification, model: Any, data: Any) -> None:
    """Refuse windows that the arm can't be scored with, and none at all for a text: each arm would choose its own."""
    asked = {"scoring_window_len": specification.scoring_window_len, "scoring_stride": specification.scoring_stride}
    is_text = isinstance(data, TextDataModule)
    for setting, value in asked.items():
        remedy = (
            "give it a number, so that all arms are scored alike" if is_text else "leave it out; a task has its own"
        )
        require((value is None) != is_text, setting, value, remedy)
    if is_text:
        model.scoring_window(data.window_len, *asked.values())
    remedy = f"`llp predict` has no text to slice in {type(data).__name__}; set it to false"
    require(is_text or not specification.slices, "slices", True, remedy)


def _contestant(specification: Specification, model: Any, data: Any) -> Contestant:
    trainer = specification.shared.get("trainer", {})
    devices = trainer.get("devices", 1)
    n_devices = devices * trainer.get("num_nodes", 1) if isinstance(devices, int) else 1
    window, decoder = training_window(model, data), model.decoder
    return Contestant(
        parameters=sum(parameter.numel() for parameter in decoder.parameters()),
        pairs=decoder.pair_count(window.n_read, window.n_last),
        flops=window.flops(decoder),
        positions=window.n_trained,
        window_len=window.length,
        windows_per_step=data.batch_size * n_devices * trainer.get("accumulate_grad_batches", 1),
    )
