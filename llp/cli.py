"""LightningCLI with this project's defaults. Nothing else in `llp` knows about command lines."""

import logging
import re
import sys
import warnings
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import yaml
from jsonargparse import ActionConfigFile, Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only
from torch.distributed import DistError

import datamodules
import llp
from datamodules.text import TextDataModule
from llp import checkpoints
from llp.callbacks import FinalHyperparameters, StepValidation, TokenLosses
from llp.certificate import Certificate
from llp.errors import SettingError, require
from llp.generation import SampleText
from llp.guards import FiniteGuard, StallGuard
from llp.interruption import Stopped
from llp.language_model import LanguageModel
from llp.report import TestReport, aligned
from llp.run_checkpoint import RunCheckpoint
from llp.trainer import LLPTrainer


class Parser(LightningArgumentParser):
    """Says what is wrong in one message, without the list of all options before it."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        noise = r"Does not validate against any|Subtypes:|Errors:|- Expected a <class 'NoneType'>|Given value"
        lines = [line for line in message.splitlines() if not re.match(rf"\s*({noise})", line)]
        print(f"llp: error: {chr(10).join(lines)}\nAll settings: llp fit --help", file=sys.stderr)
        sys.exit(2)


class SaveRunConfig(SaveConfigCallback):
    """Keeps the configuration of a training run in its folder, for the other commands too; these write none.

    That of an earlier start of the run is kept under a numbered name.
    """

    def __init__(self, parser: LightningArgumentParser, config: Namespace, **kwargs: Any) -> None:
        config = config.clone()
        for key in ("ckpt_path", "weights_only"):  # of this one call, not of the run
            config.pop(key, None)
        super().__init__(parser, config, **kwargs)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        folder = Path(trainer.log_dir or ".")  # on every rank: it is broadcast
        if trainer.is_global_zero:
            checkpoints.keep_older(folder / self.config_filename)
        super().setup(trainer, pl_module, stage)


def prepare(arguments: list[str]) -> None:
    """`llp prepare`: the data alone, on a login node say. Models and trainers that a file names are not built."""
    parser = Parser(prog="llp prepare", description="Train the tokenizer and encode the text, once a machine.")
    parser.add_argument(
        "-c", "--config", action=ActionConfigFile, help="Path to a configuration file; only `data` counts."
    )
    parser.add_lightning_class_args(TextDataModule, "data", subclass_mode=True)
    for name in ("model", "trainer", "checkpoint", "sample", "certificate", "guard", "stall"):
        parser.add_argument(f"--{name}", type=dict, default={}, help="Ignored.")
    parser.add_argument("--seed_everything", type=int | bool, default=0, help="Ignored.")
    parser.add_argument("--name", type=str | None, default=None, help="Ignored.")
    data = parser.instantiate(parser.parse_args(arguments)).data
    data.prepare_data()
    data.setup("fit")
    table = [["split", "documents", "words", "bytes", "tokens", "tokens/word", "bytes/token"]]
    for split, file in data.files.items():
        sizes = [sum(getattr(d, size) for d in file.documents) for size in ("words", "bytes", "tokens")]
        words, n_bytes, tokens = sizes
        cells = [f"{size:,}" for size in (len(file.documents), *sizes)]
        table.append([split, *cells, f"{tokens / max(1, words):.3f}", f"{n_bytes / tokens:.3f}"])
    print("\n".join(aligned(table, n_left=1)))
    print(f"Prepared in {data.prepared_folder()}")


class LLPCLI(LightningCLI):
    """`llp fit | validate | test | predict | generate | context`."""

    trainer: Trainer

    def __init__(self, *args: Any, restarts: bool, **kwargs: Any) -> None:
        self.restarts = restarts  # with `--ckpt_path auto` a run that has no checkpoint yet starts again in its folder
        super().__init__(*args, **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument(
            "--name", type=str | None, default=None, help="The run's folder in lightning_logs/; version_N unless given."
        )
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.add_lightning_class_args(FiniteGuard, "guard")
        parser.add_lightning_class_args(StallGuard, "stall")
        parser.add_lightning_class_args(SampleText, "sample")
        parser.add_lightning_class_args(Certificate, "certificate")
        parser.link_arguments("data.vocab_size", "model.init_args.vocab_size", apply_on="instantiate")
        parser.link_arguments("seed_everything", "data.init_args.seed")

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The trainer's methods, without the arguments that this command line decides on."""
        hidden = {"validate": {"verbose"}, "test": {"verbose"}, "predict": {"return_predictions"}}
        stock = {
            name: skip | hidden.get(name, set()) | {"weights_only"} for name, skip in LightningCLI.subcommands().items()
        }
        return {**stock, "generate": {"model", "datamodule"}, "context": {"model", "datamodule"}}

    def _parse_ckpt_path(self) -> None:
        # The stock method lets a checkpoint's hyperparameters win over files and flags. Here the run's own
        # configuration is the subcommand's default instead (`run_defaults`), which files and flags override.
        pass

    def _set_seed(self) -> None:
        seed = self._get(self.config, "seed_everything")
        require(seed >= 0, "seed_everything", seed, "set it to 0 or more")
        super()._set_seed()

    def before_instantiate_classes(self) -> None:
        """Open the checkpoint: a broken one is refused before anything is built."""
        path = self._get(self.config, "ckpt_path")
        remedy = f"`llp {self.subcommand}` needs a trained model; name its checkpoint"
        require(path is not None or self.subcommand == "fit", "ckpt_path", None, remedy)
        self.resumed_run = None if path is None else checkpoints.run_folder(path)
        self.checkpoint = None if path is None else checkpoints.read(path)
        self.resumed_step = 0 if self.checkpoint is None else self.checkpoint["global_step"]

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer = self._get(self.config_init, "trainer")
        if trainer.logger in (None, True):
            kwargs["logger"] = self._logger(trainer.default_root_dir or ".") if self.subcommand == "fit" else False
        elif self.subcommand == "fit":
            require(trainer.logger is not False, "trainer.logger", False, "a run needs its folder; leave it out")
        return super().instantiate_trainer(**kwargs)

    def _logger(self, root: str) -> TensorBoardLogger:
        name, run = self._get(self.config, "name"), self.resumed_run
        if run is not None and name in (None, run.name) and run.parent.name == "lightning_logs":
            root, name = str(run.parent.parent), run.name  # a run goes on in its own folder
        # What a stopped run had logged beyond the checkpoint comes again.
        return TensorBoardLogger(
            root,
            name="lightning_logs",
            version=name or slurm_job(),
            default_hp_metric=False,
            purge_step=self.resumed_step,
        )

    def after_instantiate_classes(self) -> None:
        """Refuse a checkpoint of another model, and a folder that holds another run, before any long work."""
        strategy = self.trainer.strategy
        if self.checkpoint is not None:
            checkpoints.check_fits(self.checkpoint, self.model)
            if not isinstance(strategy, ModelParallelStrategy):
                checkpoints.require_one_file(self._get(self.config, "ckpt_path"))
        self.checkpoint = None
        if isinstance(strategy, ModelParallelStrategy) and strategy._data_parallel_size == "auto":
            # Lightning's "auto" is the number of nodes: all processes of a node would read the same text.
            strategy._data_parallel_size, strategy._tensor_parallel_size = self.trainer.world_size, 1
        # jsonargparse drops settings that a class named later doesn't take: what is built is said, never left to guess.
        settings = ", ".join(f"{name}={value}" for name, value in self.model.hparams.items())
        rank_zero_info(f"{type(self.model).__name__}({settings}) on {type(self.datamodule).__name__}")
        if self.subcommand != "fit" or not self.trainer.is_global_zero:
            return
        folder = Path(self.trainer.log_dir or ".")
        # `hparams.yaml` comes with the first logged figures: a run that failed to start leaves its name free.
        if (folder / "hparams.yaml").exists() and folder.resolve() != self.resumed_run and not self.restarts:
            raise SettingError("name", folder.name, f"{folder} holds a run already; choose another name or move it")

    def fit(self, **kwargs: Any) -> None:
        self.trainer.fit(weights_only=True, **kwargs)

    def validate(self, **kwargs: Any) -> None:
        self.trainer.validate(verbose=False, weights_only=True, **kwargs)  # the report's table stands for Lightning's

    def test(self, **kwargs: Any) -> None:
        self.trainer.test(verbose=False, weights_only=True, **kwargs)

    def predict(self, **kwargs: Any) -> None:
        # `TokenLosses` writes them as they come.
        self.trainer.predict(return_predictions=False, weights_only=True, **kwargs)


def run_defaults(subcommand: str, arguments: list[str]) -> Path | None:
    """The configuration of the run whose checkpoint the arguments name: the subcommand's defaults.

    Raises:
        SettingError: If a checkpoint is needed and none is named, or it can't be opened, or nothing says what was run.
    """
    path = _last_value("ckpt_path", arguments)
    has_config = any(_values("--config", arguments)) or any(_values("-c", arguments))
    if path is None:
        remedy = f"`llp {subcommand}` needs a trained model; name its checkpoint"
        require(subcommand == "fit" or has_config, "ckpt_path", None, remedy)
        return None
    checkpoints.read(path)
    config = checkpoints.run_folder(path) / "config.yaml"
    remedy = f"the configuration of its run is not there ({config}); name it with --config"
    require(config.is_file() or has_config, "ckpt_path", path, remedy)
    return config if config.is_file() else None


def named_checkpoint(subcommand: str, arguments: list[str]) -> list[str]:
    """The arguments with the path of the run's checkpoint in place of `--ckpt_path last` or `auto`.

    `last` is the run's `last.ckpt`. `auto` is its furthest trained whole checkpoint, or none: then `llp fit` starts
    afresh. The run is the one that `--name` names, or the SLURM job.

    Raises:
        SettingError: If the run has no name, or no such checkpoint.
    """
    word = _last_value("ckpt_path", arguments)
    if word not in ("last", "auto"):
        return arguments
    name = _last_value("name", arguments) or slurm_job()
    require(name is not None, "ckpt_path", word, "it needs to know of which run; give --name")
    folder = Path(_last_value("trainer.default_root_dir", arguments) or ".") / f"lightning_logs/{name}/checkpoints"
    if word == "last":
        return [*arguments, "--ckpt_path", str(folder / "last.ckpt")]
    if subcommand == "fit":
        checkpoints.tidy(folder) if _is_rank_zero() else checkpoints.wait_until_tidy(folder)
    path = next(checkpoints.newest_first(folder), None)
    remedy = f"there is no whole checkpoint in {folder}"
    require(path is not None or subcommand == "fit", "ckpt_path", word, remedy)
    return [*arguments, "--ckpt_path", "null" if path is None else str(path)]


def _last_value(setting: str, arguments: list[str]) -> str | None:
    """The value that a setting has on the command line, in a flag or else in a file; None: it has none."""
    for value in reversed([*_values(f"--{setting}", arguments)]):
        return None if value == "null" else value
    for path in reversed([*_values("--config", arguments), *_values("-c", arguments)]):
        settings: Any = yaml.safe_load(Path(path).read_text(encoding="utf-8")) if Path(path).is_file() else {}
        for key in setting.split("."):
            settings = settings.get(key) if isinstance(settings, dict) else None
        if settings is not None:
            return str(settings)
    return None


def _values(flag: str, arguments: list[str]) -> Iterator[str]:
    """The values that a flag has on the command line, as `--flag value` or `--flag=value`."""
    for argument, following in pairwise([*arguments, ""]):
        name, equals, value = argument.partition("=")
        if name == flag:
            yield value if equals else following


def run(arguments: list[str]) -> int:
    """Run a subcommand; returns the exit status. A `SettingError` becomes one message on standard error."""
    _silence()
    for package in (llp, datamodules):  # so that `--model LLP` needs no module's name
        for name in package.__all__:
            getattr(package, name)
    subcommand, options = arguments[0], arguments[1:]
    parser_kwargs: dict[str, Any] = {"prog": "llp"}
    try:
        if subcommand == "prepare":
            prepare(options)
            return 0
        if subcommand == "consolidate":
            require(len(options) == 1, "llp consolidate", " ".join(options), "name the folder of a sharded checkpoint")
            print(f"Written to {checkpoints.consolidate(Path(options[0]))}")
            return 0
        restarts = _last_value("ckpt_path", options) == "auto"
        if subcommand in LLPCLI.subcommands() and not {"-h", "--help"} & set(options):
            options = named_checkpoint(subcommand, options)
            defaults = run_defaults(subcommand, options)
            parser_kwargs[subcommand] = {"default_config_files": [] if defaults is None else [str(defaults)]}
        LLPCLI(
            LanguageModel,
            TextDataModule,
            restarts=restarts,
            args=[subcommand, *options],
            save_config_callback=SaveRunConfig,
            save_config_kwargs={"overwrite": True},  # it keeps the older one itself
            trainer_class=LLPTrainer,
            seed_everything_default=0,
            trainer_defaults={
                "callbacks": [
                    StepValidation(),
                    FinalHyperparameters(),
                    TokenLosses(),
                    TestReport(),
                ],
                "use_distributed_sampler": False,
                "check_val_every_n_epoch": None,
                "num_sanity_val_steps": 0,
            },
            parser_kwargs=parser_kwargs,
            parser_class=Parser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )
    except Stopped as stopped:
        if _is_rank_zero():
            print(f"llp {subcommand}: stopped by {stopped}", file=sys.stderr)
        return 128 + stopped.signum
    except Exception as error:
        users_error = _users_error(error)
        if users_error is not None:
            print(f"llp {subcommand}: error: {users_error}", file=sys.stderr)
        elif not _is_rank_zero() and _is_lost_contact(error):
            rank = rank_zero_only.rank  # type: ignore[attr-defined]
            cause = str(error).partition("\n")[0]
            print(f"llp {subcommand}: rank {rank} has lost the others: {cause}", file=sys.stderr)
        else:
            raise
        return 1
    return 0


def _users_error(error: BaseException | None) -> BaseException | None:
    """What the user can mend, if an exception is that or was raised from it.

    That is our own `SettingError` (jsonargparse wraps what a constructor raises), Lightning's word for settings of its
    own that can't be used, and files that can't be read or written.
    """
    while error is not None and not isinstance(error, SettingError | MisconfigurationException | OSError):
        error = error.__cause__
    return error


def _is_lost_contact(error: Exception) -> bool:
    """Whether a collective failed since a process at its other end is gone; gloo has no type of error of its own."""
    return isinstance(error, DistError) or re.search("Connection (closed|reset) by peer", str(error)) is not None


def slurm_job() -> str | None:
    """The number of the SLURM job that this is a task of, which names its run; None: it is none."""
    job = SLURMEnvironment.job_id()
    return None if job is None else str(job)


def _is_rank_zero() -> bool:
    return rank_zero_only.rank == 0  # type: ignore[attr-defined]


def _silence() -> None:
    """Leave out what tells the user of this command line nothing."""
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")  # they are those of the command line
    warnings.filterwarnings("ignore", message="The dirpath has changed")  # a test has no checkpoint folder
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable")  # its state is the data module's
    warnings.filterwarnings("ignore", message="Couldn't infer the batch indices")  # scoring windows have places instead
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists")  # a resumed run's own
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="lightning")
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(lambda record: "💡" not in record.msg)
