"""The checkpoints of a run: the newest and the best, written whole or not at all, also when a signal ends the run."""

import os
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from llp.errors import require
from llp.run_folder import discard, link, naming, publish, tidy, unfinished
from llp.training import checkpoints
from llp.training.interruption import LISTENER, Stopped
from llp.training.metrics import StepOutput


class RunCheckpoint(ModelCheckpoint):
    """Keeps `last.ckpt`, the newest, and the best by validation; each appears whole or not at all.

    `last.ckpt` is written after each validation, and where a signal ends the run, after the step that it met. A run
    that goes on from it is the uninterrupted one bit for bit on the CPU.

    Args:
        monitor: The figure of a validation that decides which is best.
        mode: Whether its least or its greatest value is best, `min` or `max`.
        save_top_k: How many of the best are kept. One is `best.ckpt`; of several each has its step in its name, and
            `best.ckpt` is a link to the very best.
        every_n_train_steps: Write `last.ckpt` after every so many optimizer steps too; null: only after validations.

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
        filename = "best" if save_top_k == 1 else "best-{step}"
        super().__init__(
            monitor=monitor,
            mode=mode,
            filename=filename,
            save_top_k=save_top_k,
            save_last=True,
            enable_version_counter=False,
        )
        self.last_every = every_n_train_steps

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
        if self._is_own_checkpoint:
            state_dict = self._in_this_folder(state_dict)
        super().load_state_dict(state_dict)

    def _in_this_folder(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """The state with the run's folder as it is named now.

        Lightning forgets which checkpoints are the best where the name differs, be it absolute instead of relative.
        """

        def here(path: str) -> str:
            return str(Path(str(self.dirpath)) / Path(path).name) if path else path

        paths = {name: here(state_dict[name]) for name in ("best_model_path", "kth_best_model_path", "last_model_path")}
        best = {here(path): score for path, score in state_dict["best_k_models"].items()}
        return {**state_dict, **paths, "best_k_models": best, "dirpath": self.dirpath}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        LISTENER.deferring = True
        LISTENER.install()  # Lightning's own handlers end a run in the middle of a step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: StepOutput, batch: Any, batch_idx: int
    ) -> None:
        loop = trainer.fit_loop
        assert loop._data_fetcher is not None
        # A run that went on from before a validation that is due, or from before an epoch's end, would leave it out.
        validates_next = loop.epoch_loop._should_check_val_fx(loop._data_fetcher)
        if not (loop._should_accumulate() or validates_next or loop.epoch_loop.batch_progress.is_last_batch):
            self._save_last_if(self._is_due(trainer), trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        is_saved = self._last_global_step_saved == trainer.global_step
        self._save_last_if(not is_saved and (_is_at_end(trainer) or self._is_due(trainer)), trainer)

    def _is_due(self, trainer: Trainer) -> bool:
        return self.last_every is not None and trainer.global_step % self.last_every == 0

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            self._save_last_if(self._last_global_step_saved != trainer.global_step, trainer)

    def _save_last_if(self, is_due: bool, trainer: Trainer) -> None:
        """Save `last.ckpt` if it is due, or if a signal has reached any of the processes: then the run ends."""
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        received = torch.tensor(LISTENER.received or 0, device=trainer.strategy.root_device)
        signum = int(trainer.strategy.reduce(received, reduce_op="max"))
        is_stopped = signum and not _is_at_end(trainer)  # there is nothing to cut short at the end
        if is_due or is_stopped:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
        if is_stopped:
            raise Stopped(signum)

    def _save_checkpoint(self, trainer: Trainer, filepath: str) -> None:
        path = Path(filepath)
        try:
            with naming(path):
                for logger in trainer.loggers:
                    logger.save()  # what was logged up to this step is on disk before the checkpoint is
                super()._save_checkpoint(trainer, str(unfinished(path)))
                self._last_checkpoint_saved = filepath
                if trainer.is_global_zero:
                    publish(path)
                    if self.save_top_k > 1 and filepath == self.best_model_path:
                        link(path, path.with_name("best.ckpt"))
        except OSError:
            discard(path)  # where the disk is full, it would take what room there is
            raise
        trainer.strategy.barrier("published")  # a process that ends before may take the others with it

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        LISTENER.deferring = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        was_training, LISTENER.deferring = LISTENER.deferring, False
        launcher = trainer.strategy.launcher
        if isinstance(exception, Stopped) and not was_training and launcher is not None:
            launcher.kill(exception.signum)  # the processes that this one has started
        if was_training and trainer.is_global_zero:
            print(how_to_go_on(self.last_model_path), file=sys.stderr, flush=True)


def _is_at_end(trainer: Trainer) -> bool:
    return 0 < trainer.max_steps <= trainer.global_step


def how_to_go_on(path: str) -> str:
    """What to tell whose run has ended early.

    Args:
        path: The checkpoint that was written last, which may have failed; empty: there is none.
    """
    newest = next(checkpoints.newest_first(Path(path).parent), None) if path else None
    if newest is None:
        return "Nothing was saved yet."
    step = checkpoints.read(newest)["global_step"]
    return f"Go on from step {step:,} with: llp fit --ckpt_path {os.path.relpath(newest)}"


class StreamedCheckpointIO(TorchCheckpointIO):
    """Writes straight to the file.

    Lightning's own holds the file's content in memory a second time and takes it through the temporary folder, which a
    kill leaves behind. That a file appears whole, and is on the disk before, is `RunCheckpoint`'s business.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        try:
            with Path(path).open("wb") as stream:
                torch.save(checkpoint, stream)
        except RuntimeError as error:  # torch's writer, which finds less written than it should be
            if isinstance(error.__context__, OSError):
                raise error.__context__ from None
            raise
