"""`llp compare`: train and score architectures on equal terms, from a specification to a report."""

import os
import shlex
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric

import llp
from datamodules.base import LanguageDataModule
from datamodules.text import TextDataModule
from datamodules.token_files import read_about
from datamodules.tokenizers import HuggingFaceTokenizer
from llp.commands.configurations import find_configuration, read_configuration
from llp.commands.parser import Parser
from llp.commands.trained_model import own_tokenizer
from llp.comparison.folder import ComparisonFolder
from llp.comparison.plan import Arm, Plan
from llp.comparison.report import Report
from llp.comparison.run import ComparisonWork
from llp.comparison.spec import Settings, Specification, merged
from llp.comparison.timing import timed, training_step
from llp.comparison.workers import Workers, submit, threads
from llp.errors import require
from llp.training.throughput import matrix_rate, training_window
from llp.training_module import TrainingModule

SCRIPT = Path("configs/slurm/compare.sbatch")
_UTILIZATION = 0.3  # of the matrix rate, assumed by --plan before anything has been timed


def compare(
    spec: Path,
    root: Path = Path("lightning_logs"),
    plan: bool = False,
    time: bool = False,
    workers: int = 1,
    slurm: int | None = None,
    run: str | None = None,
    report: bool = False,
    retry: bool = False,
) -> None:
    """Train and score architectures on equal terms, and report which is better; see docs/comparison.md.

    Args:
        spec: A YAML file such as configs/compare/smoke.yaml.
        root: The folder that contains comparisons/.
        plan: Only list the runs with their predicted cost.
        time: Only time a training step of each arm, for the budget of equal seconds.
        workers: The number of simultaneous runs on this machine; they share its cores.
        slurm: Submit the runs as one array job, this many at a time.
        run: Execute only the run with this name.
        report: Only write the report of the finished runs.
        retry: Try failed runs again.
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
        comparison.folder.keep_specification(comparison.spec.as_settings())
        print(submit("compare", comparison.work(), comparison.source, find_configuration(SCRIPT), slurm))
        return
    if not report:
        comparison.execute(workers, run)
    if run is None:
        comparison.report()
    comparison.work().require_success(run)


class Comparison:
    """A specification, its arms and its folder.

    Args:
        source: The file of the specification.
        root: The folder of all runs.

    Raises:
        SettingError: If the specification, or an arm with what is shared, can't be used.
    """

    def __init__(self, source: Path, root: Path) -> None:
        self.source, self.spec = source, Specification(**read_specification(source, Specification))
        self.folder = ComparisonFolder(root, self.spec.name)
        tokenizer = own_tokenizer(self.spec.model(self.spec.reference))
        self.data = _instantiate("data", LanguageDataModule, self.spec.shared.get("data", {}), tokenizer)
        self.models = {arm: self._model(arm) for arm in self.spec.arms}
        self.arms = {arm: self._arm(model) for arm, model in self.models.items()}

    def _model(self, arm: str) -> TrainingModule:
        """The model of an arm, on the meta device: nothing is allocated."""
        spec, data = self.spec, self.data
        size = {"init_args": {"vocab_size": data.vocab_size}}
        model = _instantiate("model", TrainingModule, merged(spec.model(arm), size))
        scoring = {"scoring_window_len": spec.scoring_window_len, "scoring_stride": spec.scoring_stride}
        is_text = isinstance(data, TextDataModule)
        remedy = (
            "give it a number, so that all arms are scored alike" if is_text else "leave it out; a task has its own"
        )
        for setting, value in scoring.items():
            require((value is None) != is_text, setting, value, remedy)
        if is_text:
            model.geometry.scoring_window(data.window_len, *scoring.values())
        remedy = f"`llp predict` has no text to slice in {type(data).__name__}; set it to false"
        require(is_text or not spec.slices, "slices", True, remedy)
        with torch.device("meta"):
            model.configure_model()
        return model

    def _arm(self, model: TrainingModule) -> Arm:
        trainer = self._trainer
        devices = trainer.get("devices", 1)
        n_devices = devices * trainer.get("num_nodes", 1) if isinstance(devices, int) else 1
        window, decoder = training_window(model, self.data), model.decoder
        return Arm(
            parameters=sum(parameter.numel() for parameter in decoder.parameters()),
            pairs=model.geometry.pair_count(window.n_read, window.n_last),
            flops=window.flops(decoder),
            positions=window.n_trained,
            windows_per_step=self.data.batch_size * n_devices * trainer.get("accumulate_grad_batches", 1),
        )

    @property
    def _trainer(self) -> Settings:
        return self.spec.shared.get("trainer", {})

    def plan(self, choose_all: bool = False) -> Plan:
        """The plan as of now."""
        folder = self.folder
        return Plan(self.spec, self.arms, folder.records(), folder.failed(), folder.timing(), choose_all)

    def work(self) -> ComparisonWork:
        """The runs and what is left to do, as of now."""
        return ComparisonWork(self.plan(), self.folder)

    def preview(self) -> str:
        """All runs with their cost."""
        rate = self.spec.assumed_rate or _UTILIZATION * matrix_rate(torch.device("cpu"), torch.float32)
        return self.plan(choose_all=True).preview(rate)

    def time(self, workers: int) -> None:
        """Time a step of each arm, all in turns, with the threads that a run has with this many workers."""
        path = self.folder.path / "timing.json"
        require(not path.exists(), "time", path, "runs at equal seconds follow this file; remove it to time anew")
        torch.set_num_threads(threads(workers))
        trainer, data = self._trainer, self.data
        accelerator, precision = trainer.get("accelerator", "auto"), trainer.get("precision", "32-true")
        fabric = Fabric(accelerator=accelerator, devices=1, precision=precision)
        steps = {}
        for arm, model in self.models.items():
            size = data.batch_size, model.geometry.burn_in_len(data.burn_in) + data.window_len + 1
            n_batches = trainer.get("accumulate_grad_batches", 1)
            steps[arm] = training_step(model, size, data.window_len, n_batches, fabric)
        name = torch.cuda.get_device_name() if fabric.device.type == "cuda" else "cpu"
        self.folder.write_timing(timed(steps, 10, name))

    def execute(self, workers: int, only: str | None) -> None:
        """Execute all runs, or one of them, on this machine."""
        self.folder.keep_specification(self.spec.as_settings())
        self.data.prepare_data()  # once instead of in every process
        self._require_same_text()
        if "seconds" in self.spec.budgets and self.folder.timing() is None and only is None:
            self.time(workers)
        Workers(self.work, workers, only).execute()

    def _require_same_text(self) -> None:
        """Raise a `SettingError` if there are records of another text or tokenizer, since their runs count as done."""
        if not isinstance(self.data, TextDataModule):
            return
        about, records = read_about(self.data.prepared_folder()), self.folder.records()
        done = [run.name for run in self.plan().runs if run.name in records]
        for name, digest in (("data", about["data_fingerprint"]), ("tokenizer", about["tokenizer_fingerprint"])):
            others = [run for run in done if records[run].hashes.get(name, digest) != digest]
            what = f"{len(others)} of {len(done)} records are of another one, {', '.join(others[:3])} among them"
            remedy = f"{what}; restore what they were made with, or give the comparison another name"
            require(not others, f"fingerprint of the {name}", digest, remedy)

    def report(self) -> None:
        """Write the report of what is there, and print what was found and the files."""
        root = self.folder.root
        where = "" if root == Path("lightning_logs") else f" --root {shlex.quote(str(root))}"
        shipped = Path(llp.__file__).parent  # a file of the package is named as the user did
        source = self.source.relative_to(shipped) if self.source.is_relative_to(shipped) else self.source
        command = f"llp compare {shlex.quote(os.path.relpath(source))}{where}"
        report = Report(self.plan(), command)
        print("\n".join(report.found))
        for path in report.write(self.folder.path):
            print(f"Written to {path}")


def read_specification(source: Path, kind: type) -> Settings:
    """The arguments in a YAML file of a `Specification` or a `Sweep`.

    `shared` is merged into the configurations that `base` names, relative to the file's folder.

    Raises:
        SettingError: If it can't be read, or a value can't be used.
    """
    settings = read_configuration(str(source))
    base = [read_configuration(str(source.parent / path)) for path in settings.pop("base", [])]
    shared = settings.pop("shared", {})
    require(isinstance(shared, dict), "shared", shared, "it holds settings of `llp fit`: `section: {setting: value}`")
    parser = Parser(prog="llp compare")
    # Neither instantiated by the parser, which would build the models and the data that it finds in the dictionaries,
    # nor checked where they are incomplete.
    parser.add_class_arguments(kind, "spec", fail_untyped=False, skip={"shared"})
    return {**parser.parse_object({"spec": settings}).spec.as_dict(), "shared": merged(*base, shared)}


def _instantiate(section: str, base: type, settings: Settings, tokenizer: str | None = None) -> Any:
    """The model or the data of a configuration; the data with the tokenizer in a folder, if one is given."""
    parser = Parser(prog="llp compare")
    parser.add_lightning_class_args(base, section, subclass_mode=True)
    parsed = parser.parse_object({section: settings})
    if tokenizer is not None and "tokenizer" in parsed[section].init_args:
        parsed[section].init_args.tokenizer = HuggingFaceTokenizer(tokenizer)
    return parser.instantiate(parsed)[section]
