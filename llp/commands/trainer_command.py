"""What the subcommands share that hand a model and its data to Lightning's Trainer."""

import re
from typing import Any, ClassVar

from jsonargparse import Namespace
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from datamodules.base import LanguageDataModule
from llp.atomic_files import is_exported, run_folder
from llp.checkpoints import reading
from llp.checkpoints.callback import RunCheckpoint
from llp.commands.messages import lightnings_refusal
from llp.commands.named_checkpoint import named_checkpoint, with_run_defaults
from llp.commands.parser import Parser, keep_integers
from llp.commands.stored_tokenizer import with_stored_tokenizer
from llp.errors import SettingError, require
from llp.evaluation.causality_check import CausalityCheck
from llp.evaluation.report import TestReport
from llp.evaluation.token_losses import TokenLosses
from llp.generation.continuation import SampleText
from llp.language_model import LanguageModel
from llp.training.console import ValidationLines, changed_settings
from llp.training.guards import FiniteGuard, StallGuard
from llp.training.metrics import FinalHyperparameters
from llp.training.progress_bar import RunProgressBar
from llp.training.run_control import StepValidation


class TrainerCommand(LightningCLI):
    """LightningCLI with this project's defaults and one subcommand, a method of the Trainer.

    Args:
        options: The words behind the subcommand.
        save_config: What keeps the configuration of a run; None: nothing does.
    """

    name: ClassVar[str]
    hidden: ClassVar[set[str]] = set()
    """Arguments of the Trainer's method that this command line decides on."""

    trainer: Trainer

    def __init__(self, options: list[str], save_config: type[SaveConfigCallback] | None = None) -> None:
        if "--help.all" in options:
            options = ["--help"]
        else:
            options = with_run_defaults(self.name, named_checkpoint(self.name, options))
        self.is_logger_named = any(re.match(r"--trainer\.logger\b", option) for option in options)
        super().__init__(
            LanguageModel,
            LanguageDataModule,
            args=[self.name, *options],
            save_config_callback=save_config,
            save_config_kwargs={"overwrite": True},  # it keeps the older one itself
            seed_everything_default=0,
            trainer_defaults={
                "callbacks": self.callbacks(),
                "enable_model_summary": False,  # it counts no FLOPs; `fit` has a report of its own
                "use_distributed_sampler": False,
                "check_val_every_n_epoch": None,
                "num_sanity_val_steps": 0,
            },
            parser_kwargs={"prog": "llp"},
            parser_class=Parser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def callbacks(self) -> list[Callback]:
        """Those without settings of their own."""
        return [StepValidation(), FinalHyperparameters(), TokenLosses(), TestReport(), ValidationLines()]

    @classmethod
    def subcommands(cls) -> dict[str, set[str]]:
        return {cls.name: LightningCLI.subcommands()[cls.name] | cls.hidden | {"ckpt_path", "weights_only"}}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        keep_integers(parser)
        parser.add_argument(
            "--name", type=str | None, default=None, help="The run's folder in lightning_logs/; version_N unless given."
        )
        parser.add_argument(
            "--ckpt_path",
            type=str | None,
            default=None,
            help="A checkpoint or a run's folder; or last, best or auto, with --name.",
        )
        parser.add_argument(
            "--init_from",
            type=str | None,
            default=None,
            help="For fit: start from the weights of this checkpoint, with a fresh optimizer and schedule.",
        )
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.add_lightning_class_args(FiniteGuard, "guard")
        parser.add_lightning_class_args(StallGuard, "stall")
        parser.add_lightning_class_args(SampleText, "sample")
        parser.add_lightning_class_args(CausalityCheck, "certificate")
        parser.link_arguments("data.vocab_size", "model.init_args.vocab_size", apply_on="instantiate")
        parser.link_arguments("seed_everything", "data.init_args.seed")

    def _parse_ckpt_path(self) -> None:
        # The stock method lets a checkpoint's hyperparameters win over files and flags. Here the run's own
        # configuration is the subcommand's default instead (`with_run_defaults`), which files and flags override.
        pass

    def _set_seed(self) -> None:
        seed = self._get(self.config, "seed_everything")
        require(0 <= seed < 2**32, "seed_everything", seed, "set it to 0 or more, and below 2**32")
        super()._set_seed()

    def require_sections(self) -> None:
        """Raise a `SettingError` for a section that holds no settings but a value of its own."""
        for section in ("trainer", "checkpoint", "guard", "stall", "sample", "certificate"):
            value = self._get(self.config, section)
            require(isinstance(value, Namespace), section, value, "leave the section out, or give it settings")

    def before_instantiate_classes(self) -> None:
        """Open the checkpoint: a broken one is refused before anything is built."""
        self.require_sections()
        path = self._get(self.config, "ckpt_path")
        remedy = f"`llp {self.name}` needs a trained model; name its checkpoint"
        require(path is not None or self.name == "fit", "ckpt_path", None, remedy)
        self.resumed_run = None if path is None else run_folder(path)
        self.checkpoint = None if path is None else reading.read(path)
        remedy = f"an exported folder holds no optimizer's state; start a new run from it with --init_from {path}"
        require(self.name != "fit" or path is None or not is_exported(path), "ckpt_path", path, remedy)
        self.resumed_step = 0 if self.checkpoint is None else self.checkpoint["global_step"]

    def instantiate_classes(self) -> None:
        """Build what is configured; the tokenizer is the checkpoint's, unless another one is named."""
        config = self.config.clone()
        config[self.name] = with_stored_tokenizer(config[self.name], self.checkpoint)
        config[self.name].trainer.logger = self.logger_at_once(config[self.name].trainer.logger)
        try:
            self.config_init = self.parser.instantiate(config)
        except ValueError as error:
            refusal = lightnings_refusal(error)
            if refusal is None:
                raise
            raise refusal from error
        self.datamodule, self.model = self._get(self.config_init, "data"), self._get(self.config_init, "model")
        self.trainer = self.instantiate_trainer()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        settings = self._get(self.config_init, "trainer")
        if settings.logger in (None, True):
            kwargs["logger"] = self.default_logger()
        own = settings.callbacks if isinstance(settings.callbacks, list) else [settings.callbacks]
        if settings.enable_progress_bar is not False and not any(isinstance(one, ProgressBar) for one in own):
            self.trainer_defaults["callbacks"].append(RunProgressBar())
        try:
            return super().instantiate_trainer(**kwargs)
        except (ModuleNotFoundError, RuntimeError, TypeError, ValueError) as error:
            # Lightning on its settings, in its own words; a RuntimeError is on callbacks that can't be saved together.
            raise MisconfigurationException(f"trainer: {error}") from error

    def logger_at_once(self, loggers: Any) -> Any:
        """What the Trainer is built with, of the configured loggers: here those that a flag names.

        The others are for training: no test opens a run in a tracker.
        """
        return loggers if self.is_logger_named else None

    def default_logger(self) -> Any:
        """The logger where the configuration names none; False: nothing is logged."""
        return False

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        return {**kwargs, "ckpt_path": self._get(self.config, "ckpt_path"), "weights_only": True}

    def after_instantiate_classes(self) -> None:
        """Refuse a checkpoint of another model before any long work, and let the data check their windows."""
        self.datamodule.geometry = self.model.geometry
        strategy = self.trainer.strategy
        if self.checkpoint is not None:
            reading.check_fits(self.checkpoint, self.model)
            if not isinstance(strategy, ModelParallelStrategy):
                reading.require_one_file(self._get(self.config, "ckpt_path"))
            elif is_exported(self._get(self.config, "ckpt_path")):
                remedy = "an exported folder is read by one process; leave the strategy out"
                raise SettingError("trainer.strategy", type(strategy).__name__, remedy)
        if isinstance(strategy, ModelParallelStrategy) and strategy._data_parallel_size == "auto":
            # Lightning's "auto" is the number of nodes: all processes of a node would read the same text.
            strategy._data_parallel_size, strategy._tensor_parallel_size = self.trainer.world_size, 1
        if self.name != "fit":  # that has its own report
            # jsonargparse drops settings that a class named later doesn't take: what is built is said, never left to
            # guess.
            settings = ", ".join(f"{name}={value}" for name, value in changed_settings(self.model).items())
            rank_zero_info(f"{type(self.model).__name__}({settings}) on {type(self.datamodule).__name__}")
