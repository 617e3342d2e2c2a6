"""The checkpoints of a run: the newest and the best, written whole or not at all, even when a signal ends the run."""

import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import STEP_OUTPUT

from llp.atomic_files import discard, is_exported, link, naming, publish, tidy, unfinished, whole_checkpoint
from llp.checkpoints import reading
from llp.checkpoints.sharded import write_digests
from llp.errors import SettingError, require
from llp.lightning_internals import find_callback, is_accumulating, save_last, untyped, validates_next
from llp.signals import LISTENER, Stopped


class RunCheckpoint(ModelCheckpoint):
    """Keeps the newest checkpoint, `last.ckpt`, and the best by validation; each appears whole or not at all.

    `last.ckpt` is written after each validation, and when a signal ends the run, after the current step. On a CPU a
    run resumed from it equals the uninterrupted run bit for bit.

    Args:
        monitor: The validation metric that decides which checkpoint is best.
        mode: Whether its lowest or its highest value is best: `min` or `max`.
        save_top_k: How many of the best to keep. With 1 the file is `best.ckpt`; with more, each has its step in its
            name, and `best.ckpt` is a link to the best of them.
        every_n_train_steps: Also write `last.ckpt` every this many optimizer steps; null: only after validations.

    Raises:
        SettingError: If a value can't be used.
    """

    def __init__(
        self,
        monitor: str = "val/loss",
        mode: str = "min",
        save_top_k: int = 1,
        every_n_train_steps: int | None = None,
    ) -> None:
        require(save_top_k >= 1, "checkpoint.save_top_k", save_top_k, "set it to 1 or more")
        every = every_n_train_steps
        require(every is None or every >= 1, "checkpoint.every_n_train_steps", every, "set it to 1 or more, or to null")
        super().__init__(
            monitor=monitor,
            mode=mode,
            filename="best" if save_top_k == 1 else "best-{step}",
            save_top_k=save_top_k,
            save_last=True,
            enable_version_counter=False,
        )
        self.last_every = every_n_train_steps
        self._saved_step = 0
        self._all_stop = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = StreamedCheckpointIO()
        if stage == "fit" and trainer.is_global_zero:
            tidy(Path(str(self.dirpath)))

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        folder = Path(str(trainer.ckpt_path)).resolve().parent
        self._is_own_checkpoint = folder == Path(str(self.dirpath)).resolve()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(self._in_this_folder(state_dict) if self._is_own_checkpoint else state_dict)

    def _in_this_folder(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """The state with the run's folder as it is named now.

        Lightning forgets which checkpoints are the best if the path differs, even only relative vs. absolute.
        """

        def here(path: str) -> str:
            return str(Path(str(self.dirpath)) / Path(path).name) if path else path

        paths = {name: here(state_dict[name]) for name in ("best_model_path", "kth_best_model_path", "last_model_path")}
        best = {here(path): score for path, score in state_dict["best_k_models"].items()}
        return {**state_dict, **paths, "best_k_models": best, "dirpath": self.dirpath}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._saved_step = 0
        LISTENER.deferring = True
        LISTENER.install()  # Lightning's own handlers end a run in the middle of a step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: Any, batch_idx: int
    ) -> None:
        # Don't save just before a due validation or epoch end: a resumed run would skip it.
        is_last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if not (is_accumulating(trainer) or is_last or validates_next(trainer)):
            self._save_last_if(self._is_due(trainer), trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        is_saved = self._saved_step == trainer.global_step
        is_last = _is_at_end(trainer) or trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        self._save_last_if(not is_saved and (is_last or self._is_due(trainer)), trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._save_last_if(self._saved_step != trainer.global_step, trainer)

    def _is_due(self, trainer: Trainer) -> bool:
        return self.last_every is not None and trainer.global_step % self.last_every == 0

    def _save_last_if(self, is_due: bool, trainer: Trainer) -> None:
        """Save `last.ckpt` if it is due, or if a signal has reached any process; a signal also ends the run."""
        if untyped(trainer).fast_dev_run:
            return
        received = torch.tensor(LISTENER.received or 0, device=trainer.strategy.root_device)
        signum = int(trainer.strategy.reduce(received, reduce_op="max"))
        is_stopped = signum and not _is_at_end(trainer)  # the last step is done; there is nothing to stop
        if is_due or is_stopped:
            save_last(self, trainer)
        if is_stopped:
            self._all_stop = True
            raise Stopped(signum)

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        path = Path(filepath)
        try:
            with naming(path):
                for logger in trainer.loggers:
                    logger.save()  # what was logged up to this step is on disk before the checkpoint is
                super()._save_checkpoint(trainer, str(unfinished(path)))
                self._saved_step, self._last_checkpoint_saved = trainer.global_step, filepath
                if unfinished(path).is_dir():
                    write_digests(unfinished(path), trainer.global_rank)
                    trainer.strategy.barrier("digests")
                if trainer.is_global_zero:
                    publish(path)
                    if self.save_top_k > 1 and filepath == self.best_model_path:
                        link(path, path.with_name("best.ckpt"))
        except OSError:
            discard(path)  # on a full disk it would take up the remaining room
            raise
        trainer.strategy.barrier("published")  # a process that ends earlier may take the others with it

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        LISTENER.deferring = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        was_training, LISTENER.deferring = LISTENER.deferring, False
        launcher = trainer.strategy.launcher
        if isinstance(exception, Stopped) and not was_training and launcher is not None:
            launcher.kill(exception.signum)  # the processes that this one has started
        if was_training and trainer.is_global_zero:
            print(how_to_resume(self.last_model_path), file=sys.stderr, flush=True)
        if self._all_stop:  # rank 0 still has files to write, and SLURM kills it soon after another rank has ended
            trainer.strategy.barrier("stopped")


def run_checkpoint(trainer: Trainer) -> RunCheckpoint | None:
    """The callback that writes the run's checkpoints, or None if there is none."""
    return find_callback(trainer, RunCheckpoint)


def _is_at_end(trainer: Trainer) -> bool:
    return 0 < trainer.max_steps <= trainer.global_step


def complete_last(path: Path) -> None:
    """Make the checkpoint of a run's last step its `last.ckpt`, if a kill prevented that."""
    last = path.with_name("last.ckpt")
    if path == last or path.parent.name != "checkpoints":
        return
    with suppress(SettingError):  # it is missing or damaged
        if reading.read(last)["global_step"] == reading.read(path)["global_step"]:
            return
    with whole_checkpoint(last) as copy:
        (shutil.copytree if path.is_dir() else shutil.copyfile)(path, copy)


def how_to_resume(path: str) -> str:
    """The command that resumes a run which has ended early.

    Args:
        path: The last checkpoint that was to be written, or an empty string.
    """
    newest = next(reading.newest_first(Path(path).parent), None) if path else None
    if newest is None:
        return "No checkpoint has been saved yet."
    step = reading.read(newest)["global_step"]
    return f"Resume from step {step:,} with: llp fit --ckpt_path {os.path.relpath(newest)}"


class StreamedCheckpointIO(TorchCheckpointIO):
    """Writes directly to the file.

    Lightning's checkpoint IO keeps a second copy of the content in memory and writes it to the temporary folder first,
    where a killed process leaves it behind. `RunCheckpoint` makes sure that a file is on disk and appears only when
    complete.
    """

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint or an exported folder."""
        return reading.read(path) if is_exported(path) else super().load_checkpoint(path, *args, **kwargs)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        try:
            with Path(path).open("wb") as stream:
                torch.save(checkpoint, stream)
        except RuntimeError as error:  # torch's writer raises this when less was written than expected
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
