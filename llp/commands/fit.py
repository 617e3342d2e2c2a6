"""`llp fit`: train, validate and keep checkpoints, in a folder of the run's own."""

import os
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from llp.atomic_files import whole_file, with_digest_line
from llp.checkpoints.callback import complete_last
from llp.commands.messages import lightnings_refusal, users_error
from llp.commands.named_checkpoint import last_value, slurm_job
from llp.commands.trackers import configured, is_tensorboard, named, open_trackers, require_packages, without_defaults
from llp.commands.trainer_command import TrainerCommand
from llp.commands.trainer_settings import check_callbacks, check_length, check_trainer_settings, warn_of_warmup
from llp.errors import SettingError, require
from llp.training.console import RunSummary, StartReport
from llp.training.run_control import InitialWeights
from llp.training.run_lock import locked
from llp.training.run_record import RunRecord


def run(options: list[str]) -> None:
    """Train a model."""
    FitCommand(options)


class FitCommand(TrainerCommand):
    """`Trainer.fit` in a run's folder."""

    name = "fit"
    initial_weights: InitialWeights | None = None

    def __init__(self, options: list[str]) -> None:
        # With `--ckpt_path auto` a run that has no checkpoint yet starts again in its folder.
        self.restarts = last_value("ckpt_path", options) == "auto"
        # Comet would take all that TensorBoard gets, too; Lightning sets this when the parser has imported it.
        os.environ.setdefault("COMET_DISABLE_AUTO_LOGGING", "1")
        super().__init__(options, SaveRunConfig)

    def callbacks(self) -> list[Callback]:
        return [*super().callbacks(), StartReport(), RunSummary(), RunRecord()]

    def before_instantiate_classes(self) -> None:
        """Refuse settings of the Trainer with which nothing would be trained, too."""
        self.require_sections()
        settings = self._get(self.config, "trainer")
        check_trainer_settings(settings)
        name = self._get(self.config, "name")
        require_packages(configured(settings.logger))
        remedy = "it is the name of a folder in lightning_logs; choose one without slashes and control characters"
        is_one = name is None or (name.isprintable() and name == os.path.basename(name) and name not in (".", ".."))
        require(is_one, "name", repr(name), remedy)
        super().before_instantiate_classes()

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        logger = self._get(self.config_init, "trainer").logger
        require(logger is not False, "trainer.logger", False, "a run needs its folder; leave it out")
        trainer = super().instantiate_trainer(**kwargs)
        check_callbacks(trainer.callbacks)  # type: ignore[attr-defined]
        if self.checkpoint is None and self._get(self.config, "init_from") is not None:
            self.initial_weights = InitialWeights(self._get(self.config, "init_from"))
            trainer.callbacks.append(self.initial_weights)  # type: ignore[attr-defined]
        return trainer

    def logger_at_once(self, loggers: Any) -> Any:
        """The one whose folder is the run's: TensorBoard's, as configured, or else ours. The others are built last."""
        if not configured(loggers):
            return loggers
        tensorboard = next(filter(is_tensorboard, configured(loggers)), None)
        return None if tensorboard is None else named(tensorboard, self._place()[1])

    def _place(self) -> tuple[str, str | None]:
        """The folder above `lightning_logs`, and the run's name there, if it has one yet."""
        root = self._get(self.config, "trainer").default_root_dir or "."
        name, run = self._get(self.config, "name"), self.resumed_run
        if run is not None and name in (None, run.name) and run.parent.name == "lightning_logs":
            root, name = str(run.parent.parent), run.name
        return root, name or slurm_job()

    def default_logger(self) -> TensorBoardLogger:
        """TensorBoard's, in the run's folder: a new one, or that of the run which is resumed."""
        root, name = self._place()
        # What a stopped run had logged beyond the checkpoint comes again.
        return TensorBoardLogger(
            root,
            name="lightning_logs",
            version=name,
            default_hp_metric=False,
            purge_step=self.resumed_step,
        )

    def after_instantiate_classes(self) -> None:
        """Also refuse settings that a resumed run can't change."""
        super().after_instantiate_classes()
        self.model.run_config = self._yaml()
        max_steps, hparams = self.trainer.max_steps, self.model.hparams
        check_length(max_steps, self.resumed_step, hparams.get("schedule"))
        warn_of_warmup(hparams.get("warmup_steps", 0), max_steps)
        if self.checkpoint is not None:
            self.model.history = self.checkpoint["settings_history"]
            self.model.check_resume(self.trainer, self.datamodule)
        if self.initial_weights is not None:
            self.initial_weights.check_fits(self.model)

    def _check_folder(self, folder: Path) -> None:
        """Refuse a folder that holds another run."""
        # `hparams.yaml` comes with the first logged figures: a run that failed to start leaves its name free.
        if (folder / "hparams.yaml").exists() and folder.resolve() != self.resumed_run and not self.restarts:
            raise SettingError("name", folder.name, f"{folder} holds a run already; choose another name or move it")
        if self.resumed_run not in (None, folder.resolve()):
            one, other = os.path.relpath(str(self.resumed_run)), os.path.relpath(folder)
            rank_zero_info(
                f"{one} is resumed at step {self.resumed_step:,} as a run of its own, {other}; it stays as it is"
            )

    def _yaml(self) -> str:
        """The configuration of the run, as it is written into its folder."""
        parser = self._parser(self.name)
        try:
            return parser.dump(settings_of_run(self.config[self.name]), skip_unset=False)
        except ValueError as error:  # a class whose argument has a default that YAML has no word for
            refusal = lightnings_refusal(error)
            if refusal is None:
                raise
            remedy = "it can't be written into the run's configuration; give that argument a plain value"
            raise MisconfigurationException(f"{refusal}: {remedy}") from error

    def _trackers(self) -> list[Namespace]:
        """The configured loggers that the Trainer doesn't have yet."""
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return []
        loggers = configured(self._get(self.config, "trainer").logger)
        first = next(filter(is_tensorboard, loggers), None)
        return [logger for logger in loggers if logger is not first]

    def fit(self, **kwargs: Any) -> None:
        if self.trainer.max_steps == self.resumed_step:
            rank_zero_info(f"Nothing is left to do: all {self.resumed_step:,} steps of trainer.max_steps are trained")
            if self.trainer.is_global_zero and self.resumed_run is not None:
                with locked(self.resumed_run):
                    complete_last(Path(self._get(self.config, "ckpt_path")))
            return
        if not self.trainer.is_global_zero:
            self.trainer.fit(**kwargs)
            return
        folder = Path(self.trainer.log_dir or ".")
        with locked(folder):
            self._check_folder(folder)
            self.trainer.loggers = [*self.trainer.loggers, *open_trackers(self._trackers(), folder)]
            try:
                self.trainer.fit(**kwargs)
            except Exception as error:
                refused = users_error(error)
                if isinstance(refused, OSError) and refused.errno is not None and refused.filename is None:
                    # TensorBoard's file, say: its writer doesn't name it.
                    raise OSError(refused.errno, refused.strerror, str(folder)) from refused
                raise


class SaveRunConfig(SaveConfigCallback):
    """Keeps the configuration of a training run in its folder, for the other commands too; these write none.

    That of an earlier start of the run is kept under a numbered name.
    """

    def __init__(self, parser: LightningArgumentParser, config: Namespace, **kwargs: Any) -> None:
        super().__init__(parser, settings_of_run(config), save_to_log_dir=False, **kwargs)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        self._folder = Path(trainer.log_dir or ".")  # on every rank: it is broadcast
        super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with whole_file(self._folder / self.config_filename) as temporary:
            text = self.parser.dump(self.config, skip_unset=False)
            temporary.write_text(with_digest_line(text), encoding="utf-8")


def settings_of_run(config: Namespace) -> Namespace:
    """A configuration without the settings of one call alone."""
    config = config.clone()
    for key in ("ckpt_path", "weights_only"):
        config.pop(key, None)
    loggers = config.trainer.logger
    if configured(loggers):
        brief = [without_defaults(logger) for logger in configured(loggers)]
        config.trainer.logger = brief if isinstance(loggers, list) else brief[0]
    return config
