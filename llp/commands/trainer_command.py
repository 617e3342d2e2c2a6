"""The subcommands that hand a model and its data to Lightning's Trainer. `llp fit` does more: see `fit.py`."""

from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from datamodules.base import LanguageDataModule
from llp.atomic_files import is_exported
from llp.checkpoints import reading
from llp.checkpoints.callback import RunCheckpoint
from llp.commands import COMMANDS
from llp.commands.arguments import Arguments
from llp.commands.parser import Parser
from llp.commands.trained_model import with_own_tokenizer, with_stored_tokenizer
from llp.errors import SettingError, require
from llp.evaluation.causality_check import CausalityCheck
from llp.evaluation.token_losses import TokenLosses
from llp.generation.continuation import SampleText
from llp.lightning_internals import keep_integers, share_data_over_all
from llp.training.console import ValidationLines, changed_settings
from llp.training.guards import FiniteGuard, StallGuard
from llp.training.metrics import FinalHyperparameters
from llp.training.progress import RunProgress
from llp.training.run_control import StepValidation
from llp.training_module import TrainingModule


class TrainerCommand(LightningCLI):
    """LightningCLI with this project's defaults and one subcommand, a method of the Trainer.

    Args:
        command: The subcommand.
        options: The words behind it.
        save_config: The callback that keeps the configuration of a run, if any.

    Attributes:
        checkpoint: The content of the checkpoint that the arguments name, if any, and `ckpt_path` its path.
    """

    trainer: Trainer

    def __init__(self, command: str, options: list[str], save_config: type[SaveConfigCallback] | None = None) -> None:
        self.command, self.arguments = command, Arguments(command, options)
        path = self.arguments.ckpt_path
        self.ckpt_path = None if path is None else str(path)
        self.checkpoint = None if path is None else reading.read(path)
        usage = f"llp {command} [--config FILE ...] [--SECTION.SETTING VALUE ...]"
        super().__init__(
            TrainingModule,
            LanguageDataModule,
            args=[command, *self.arguments.words()],
            save_config_callback=save_config,
            save_config_kwargs={"overwrite": True},  # it keeps the older one itself
            seed_everything_default=0,
            trainer_defaults={
                "callbacks": self.callbacks(),
                "enable_model_summary": False,  # it counts no FLOPs; `llp fit` has a report of its own
                "use_distributed_sampler": False,
                "check_val_every_n_epoch": None,
                "num_sanity_val_steps": 0,
            },
            parser_kwargs={"prog": "llp", command: {"usage": usage, "description": COMMANDS[command]}},
            parser_class=Parser,
            subclass_mode_model=True,
            subclass_mode_data=True,
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
        )

    def callbacks(self) -> list[Callback]:
        """Those without settings of their own."""
        return [StepValidation(), FinalHyperparameters(), TokenLosses(), ValidationLines()]

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]  # Lightning calls it on the instance
        decided_here = {"ckpt_path", "weights_only", "verbose", "return_predictions"}
        return {self.command: LightningCLI.subcommands()[self.command] | decided_here}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        self.command_parser = parser
        keep_integers(parser)
        for name, text in {
            "name": "The run's folder in lightning_logs/; version_N unless given.",
            "ckpt_path": "A checkpoint or a run's folder; or last, best or auto, with --name.",
            "init_from": "For fit: start a new run from the weights of this checkpoint.",
        }.items():
            parser.add_argument(f"--{name}", type=str | None, help=text)
        parser.add_lightning_class_args(RunCheckpoint, "checkpoint")
        parser.add_lightning_class_args(FiniteGuard, "guard")
        parser.add_lightning_class_args(StallGuard, "stall")
        parser.add_lightning_class_args(SampleText, "sample")
        parser.add_lightning_class_args(CausalityCheck, "certificate")
        parser.link_arguments("data.vocab_size", "model.init_args.vocab_size", apply_on="instantiate")
        parser.link_arguments("seed_everything", "data.init_args.seed")

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        super().parse_arguments(parser, args)
        # Lightning would let the checkpoint's hyperparameters win over files and flags. Here the run's configuration
        # gives the defaults instead, and the path reaches the Trainer another way.
        self.settings.pop("ckpt_path")
        seed = self.settings.seed_everything
        require(0 <= seed < 2**32, "seed_everything", seed, "set it to 0 or more, and below 2**32")

    @property
    def settings(self) -> Namespace:
        """The configuration of the subcommand."""
        settings: Namespace = self.config[self.command]
        return settings

    def settings_to_build(self) -> Namespace:
        """The configuration from which model, data and Trainer are built; the tokenizer is the checkpoint's."""
        return with_own_tokenizer(with_stored_tokenizer(self.settings, self.checkpoint))

    def instantiate_classes(self) -> None:
        accelerator = self.settings.trainer.accelerator
        has_gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
        remedy = "torch finds no GPU on this machine; take configs/trainer/cpu.yaml in place of gpu.yaml"
        require(has_gpu or accelerator not in ("gpu", "cuda"), "trainer.accelerator", accelerator, remedy)
        self.config_init = self.parser.instantiate(Namespace({self.command: self.settings_to_build()}))
        built = self.config_init[self.command]
        self.datamodule, self.model = built.data, built.model
        self.datamodule.geometry = self.model.geometry  # so that windows are checked before a long preparation
        self.trainer = self.instantiate_trainer()

    def loggers(self, configured: Any) -> Any:
        """The Trainer's loggers, from those that are configured; nothing is logged unless there are some."""
        return configured or False

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        built = self.config_init[self.command].trainer
        own = built.callbacks if isinstance(built.callbacks, list) else [built.callbacks]
        if built.enable_progress_bar is not False and not any(isinstance(one, ProgressBar) for one in own):
            self.trainer_defaults["callbacks"].append(RunProgress())
        try:
            return super().instantiate_trainer(logger=self.loggers(built.logger), **kwargs)
        except (ModuleNotFoundError, RuntimeError, TypeError, ValueError) as error:
            # Lightning on its settings; a RuntimeError is about callbacks that can't be saved together.
            raise MisconfigurationException(f"trainer: {error}") from error

    def after_instantiate_classes(self) -> None:
        """Refuse a checkpoint of another model before any long work."""
        strategy = self.trainer.strategy
        if self.checkpoint is not None and self.ckpt_path is not None:
            reading.check_fits(self.checkpoint, self.model)
            if not isinstance(strategy, ModelParallelStrategy):
                reading.require_one_file(self.ckpt_path)
            elif is_exported(self.ckpt_path):
                remedy = "an exported folder is read by one process; leave the strategy out"
                raise SettingError("trainer.strategy", type(strategy).__name__, remedy)
        if isinstance(strategy, ModelParallelStrategy):
            share_data_over_all(strategy, self.trainer.world_size)
        if self.command != "fit":  # which has a report of its own
            # jsonargparse drops settings that a class named later doesn't take, so what is built is shown.
            settings = ", ".join(f"{name}={value}" for name, value in changed_settings(self.model).items())
            rank_zero_info(f"{type(self.model).__name__}({settings}) on {type(self.datamodule).__name__}")

    def validate(self, **kwargs: Any) -> None:
        self.trainer.validate(**kwargs, ckpt_path=self.ckpt_path, weights_only=True, verbose=False)

    def test(self, **kwargs: Any) -> None:
        self.trainer.test(**kwargs, ckpt_path=self.ckpt_path, weights_only=True, verbose=False)

    def predict(self, **kwargs: Any) -> None:
        self.trainer.predict(**kwargs, ckpt_path=self.ckpt_path, weights_only=True, return_predictions=False)
