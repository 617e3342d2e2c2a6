"""`llp fit`: train, validate and keep checkpoints, in a folder of the run's own."""

import os
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from tqdm import tqdm

from llp.atomic_files import is_exported, run_folder, write_whole
from llp.checkpoints.callback import complete_last
from llp.commands.arguments import slurm_job
from llp.commands.messages import users_error
from llp.commands.trackers import for_run, identifiers, open_trackers
from llp.commands.trainer_command import TrainerCommand
from llp.errors import SettingError, require
from llp.lightning_internals import find_callback
from llp.training.console import RunSummary, StartReport
from llp.training.run_control import InitialWeights
from llp.training.run_lock import locked
from llp.training.run_record import RunRecord
from llp.training.whole_steps import check_trainer


class FitCommand(TrainerCommand):
    """`Trainer.fit` in a run's folder."""

    initial_weights: InitialWeights | None = None

    def __init__(self, options: list[str]) -> None:
        # Comet would take everything that TensorBoard gets, too; Lightning reads this when the parser imports it.
        os.environ.setdefault("COMET_DISABLE_AUTO_LOGGING", "1")
        super().__init__("fit", options, SaveRunConfig)

    def callbacks(self) -> list[Callback]:
        return [*super().callbacks(), StartReport(), RunSummary(), RunRecord()]

    def before_instantiate_classes(self) -> None:
        """Refuse settings that make training impossible."""
        trainer, name, path = self.settings.trainer, self.settings.name, self.ckpt_path
        self.resumed_run = None if path is None else run_folder(path)
        for setting in ("max_steps", "max_epochs", "limit_train_batches", "accumulate_grad_batches"):
            value = trainer[setting]
            require(value is None or value != 0, f"trainer.{setting}", value, "nothing would be trained; leave it out")
        interval = trainer.val_check_interval
        require(interval is None or interval != 0, "trainer.val_check_interval", 0, "set it to 1 or more")
        require(trainer.logger is not False, "trainer.logger", False, "a run needs its folder; leave it out")
        remedy = "it is the name of a folder in lightning_logs; choose one without slashes and control characters"
        is_one = name is None or (name.isprintable() and name == os.path.basename(name) and name not in (".", ".."))
        require(is_one, "name", repr(name), remedy)
        remedy = f"it holds no optimizer's state; start a new run from its weights with --init_from {path}"
        is_sharded = path is not None and Path(path).is_dir() and not is_exported(path)
        can_resume = self.checkpoint is None or is_sharded or "optimizer_states" in self.checkpoint
        require(can_resume, "ckpt_path", path, remedy)
        self.resumed_step = 0 if self.checkpoint is None else self.checkpoint["global_step"]
        # What a stopped run had logged beyond the checkpoint comes again.
        root, name = self._place()
        where: dict[str, Any] = {"name": "lightning_logs", "version": name, "default_hp_metric": False}
        self.tensorboard = TensorBoardLogger(root, **where, purge_step=self.resumed_step)

    def _place(self) -> tuple[str, str | None]:
        """The folder above `lightning_logs`, and the run's name there, if it has one yet."""
        root, name, run = self.settings.trainer.default_root_dir or ".", self.settings.name, self.resumed_run
        if run is not None and name in (None, run.name) and run.parent.name == "lightning_logs":
            return str(run.parent.parent), run.name
        return root, name or slurm_job()

    def settings_to_build(self) -> Namespace:
        """As for every subcommand, and trackers have the run's name and go on with the run that is resumed."""
        settings = super().settings_to_build().clone()
        folder, loggers = Path(self.tensorboard.log_dir), settings.trainer.logger
        if isinstance(loggers, list | Namespace):
            several = loggers if isinstance(loggers, list) else [loggers]
            settings.trainer.logger = [for_run(logger, folder.name, identifiers(folder)) for logger in several]
        return settings

    def loggers(self, configured: Any) -> Any:
        """TensorBoard's first, whose folder is the run's: the user's own, or else ours."""
        trackers = configured if isinstance(configured, list) else []
        own = [logger for logger in trackers if isinstance(logger, TensorBoardLogger)] or [self.tensorboard]
        return [*own[:1], *(logger for logger in trackers if logger is not own[0])]

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        trainer = super().instantiate_trainer(**kwargs)
        if self.checkpoint is None and self.settings.init_from is not None:
            self.initial_weights = InitialWeights(self.settings.init_from)
            trainer.callbacks.append(self.initial_weights)  # type: ignore[attr-defined]
        return trainer

    def after_instantiate_classes(self) -> None:
        """Refuse also what a resumed run can't change, and weights that don't fit."""
        super().after_instantiate_classes()
        self.model.run_config = self.command_parser.dump(self.settings, skip_unset=False)
        max_steps, hparams, done = self.trainer.max_steps, self.model.hparams, self.resumed_step
        remedy = "the cosine falls until the last step; set it to the number of steps, or schedule to halving"
        require(max_steps > 0 or hparams.get("schedule") != "cosine", "trainer.max_steps", max_steps, remedy)
        remedy = f"the checkpoint has trained for {done:,} steps, and this counts those of the whole run; set it higher"
        require(max_steps < 0 or max_steps >= done, "trainer.max_steps", max_steps, remedy)
        check_trainer(self.trainer)
        if self.checkpoint is not None:
            self._check_time(self.checkpoint)
            self.model.history = self.checkpoint["settings_history"]
            self.model.check_resume(self.trainer, self.datamodule)
        if self.initial_weights is not None:
            self.initial_weights.check_fits(self.model)

    def _check_time(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to resume a run whose time is up."""
        timer, state = find_callback(self.trainer, Timer), checkpoint.get("callbacks", {}).get("Timer")
        if timer is not None and state is not None and (limit_s := timer.time_remaining()) is not None:
            trained_s = state["time_elapsed"]["train"]
            trained, limit = (tqdm.format_interval(seconds) for seconds in (trained_s, limit_s))
            remedy = f"the run has trained for {trained}, and this counts all of it; set it higher"
            require(trained_s < limit_s, "trainer.max_time", limit, remedy)

    def _check_folder(self, folder: Path) -> None:
        """Refuse a folder that holds another run."""
        is_resumed, restarts = folder.resolve() == self.resumed_run, self.arguments.asked == "auto"
        # `hparams.yaml` comes with the first logged metrics: a run that failed to start leaves its name free.
        if (folder / "hparams.yaml").exists() and not is_resumed and not restarts:
            raise SettingError("name", folder.name, f"{folder} holds a run already; choose another name or move it")
        if self.resumed_run is not None and not is_resumed:
            one, other = os.path.relpath(self.resumed_run), os.path.relpath(folder)
            rank_zero_info(f"{one} is resumed at step {self.resumed_step:,} as a new run, {other}; it stays as it is")

    def fit(self, **kwargs: Any) -> None:
        kwargs |= {"ckpt_path": self.ckpt_path, "weights_only": True}
        if self.trainer.max_steps == self.resumed_step:
            rank_zero_info(f"Nothing is left to do: all {self.resumed_step:,} steps of trainer.max_steps are trained")
            if self.trainer.is_global_zero and self.resumed_run is not None and self.ckpt_path is not None:
                with locked(self.resumed_run):
                    complete_last(Path(self.ckpt_path))
            return
        if not self.trainer.is_global_zero:
            self.trainer.fit(**kwargs)
            return
        folder = Path(self.trainer.log_dir or ".")
        with locked(folder):
            self._check_folder(folder)
            if not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
                open_trackers(self.trainer.loggers[1:], folder)
            try:
                self.trainer.fit(**kwargs)
            except Exception as error:
                refused = users_error(error)
                if isinstance(refused, OSError) and refused.errno is not None and refused.filename is None:
                    # TensorBoard's file, for example: its writer doesn't name it.
                    raise OSError(refused.errno, refused.strerror, str(folder)) from refused
                raise


class SaveRunConfig(SaveConfigCallback):
    """Keeps the configuration of a training run in its folder, for the other subcommands too.

    The one of an earlier start of the run is kept under a numbered name.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self.save_to_log_dir = False
            self.folder = Path(trainer.log_dir or ".")  # on every rank: it is broadcast
            super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        text = self.parser.dump(self.config, skip_unset=False)
        write_whole(self.folder / self.config_filename, text, keeps_older=True)
