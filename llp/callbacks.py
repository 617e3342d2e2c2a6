"""What a run shows that Lightning doesn't log already."""

import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor
from torch.optim import Optimizer

from llp.checkpoints import keep_older, run_folder
from llp.throughput import compute_dtype, peak_flops

StepOutput = Tensor | Mapping[str, Any] | None


def log_step(trainer: Trainer, figures: Mapping[str, Any], step: int) -> None:
    """Log figures of an optimizer step, counted from 1, as `train/*` where `log_every_n_steps` divides it.

    Straight to the logger: what Lightning's `log` takes is written only after a checkpoint of the step is, and a run
    that goes on from there would miss a point of its curves.
    """
    if step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
        for logger in trainer.loggers:
            logger.log_metrics({f"train/{name}": float(value) for name, value in figures.items()}, step - 1)


class RunMetrics(Callback):
    """Logs the loss, the learning rate, the tokens trained on and their rate, each over optimizer steps.

    `tokens` are trained positions, those with a loss, and `input_tokens` all that the model read, over all ranks. The
    rate is that of trained positions since the last logged step; validation does not count. `mfu` is the share of what
    the devices could compute (`llp.throughput`) that went into the model's own FLOPs, those of its forward and backward
    pass; `data_wait` the share of the time in which the model waited for its next batch.
    """

    def __init__(self) -> None:
        self.tokens = self.input_tokens = 0
        self._learning_rate = 0.0
        self._seconds = self._started = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {"tokens": self.tokens, "input_tokens": self.input_tokens}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.tokens, self.input_tokens = state_dict["tokens"], state_dict["input_tokens"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._peak_flops = peak_flops(pl_module.device, compute_dtype(str(trainer.precision))) * trainer.world_size
        self._begin_interval(trainer)

    def _begin_interval(self, trainer: Trainer) -> None:
        """Rates are those from here to the next logged step."""
        self._logged_tokens, self._flops, self._waited = self.tokens, 0, _seconds_waited(trainer)
        self._seconds, self._started = 0.0, time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._seconds += time.perf_counter() - self._started

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._started = time.perf_counter()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self._learning_rate = optimizer.param_groups[0]["lr"]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: StepOutput, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(outputs, Mapping)
        self.tokens += outputs["trained_tokens"] * trainer.world_size
        self.input_tokens += outputs["input_tokens"] * trainer.world_size
        self._flops += outputs["flops"] * trainer.world_size
        if trainer.fit_loop._should_accumulate() or trainer.global_step % trainer.log_every_n_steps:  # type: ignore[attr-defined]
            return
        seconds = self._seconds + time.perf_counter() - self._started
        figures = {
            "loss": pl_module.step_loss,
            "learning_rate": self._learning_rate,
            "tokens": self.tokens,
            "input_tokens": self.input_tokens,
            "tokens_per_second": (self.tokens - self._logged_tokens) / seconds,
            "mfu": self._flops / seconds / self._peak_flops,
            "data_wait": (_seconds_waited(trainer) - self._waited) / seconds,
        }
        self._begin_interval(trainer)
        log_step(trainer, figures, trainer.global_step)
        pl_module.log("tokens/s", figures["tokens_per_second"], prog_bar=True, logger=False)


def _seconds_waited(trainer: Trainer) -> float:
    """For batches, since the loader was made; not a number for a loader that is not ours, which doesn't know."""
    return getattr(trainer.train_dataloader, "seconds", math.nan)


class StepSeed(Callback):
    """Seeds every batch from (seed, batch, rank): a resumed run draws what the uninterrupted one would.

    Under data parallelism each rank draws its own dropout.
    """

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        seed = os.environ.get("PL_GLOBAL_SEED", "0")  # where Lightning's `seed_everything` leaves it
        batches = trainer.fit_loop.epoch_loop.total_batch_idx
        entropy = np.random.SeedSequence([int(seed), batches, trainer.global_rank])
        torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> 1))


class StepValidation(Callback):
    """Validates after the last step, whatever the interval, and never between the batches of one optimizer step.

    So a run ends with a score and a checkpoint, and no checkpoint is taken where gradients wait to be summed up.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        interval, accumulated = trainer.val_check_batch, trainer.accumulate_grad_batches
        if isinstance(interval, int) and interval % accumulated:
            trainer.val_check_batch = interval + -interval % accumulated
            rank_zero_info(f"Validating every {trainer.val_check_batch:,} batches, in whole optimizer steps")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: StepOutput, batch: Any, batch_idx: int
    ) -> None:
        if 0 < trainer.max_steps <= trainer.global_step:
            trainer.val_check_batch = 1  # consulted right after this hook


class FinalHyperparameters(Callback):
    """Writes the hyperparameters with the last validation's figures to TensorBoard's HPARAMS page."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(trainer.logger, TensorBoardLogger) or not trainer.is_global_zero:
            return
        final = {
            f"final/{name.removeprefix('val/')}": value.item()
            for name, value in trainer.callback_metrics.items()
            if name.startswith("val/")
        }
        trainer.logger.log_hyperparams(trainer.logger.hparams, final, step=trainer.global_step)


class TokenLosses(BasePredictionWriter):
    """`llp predict`: the loss of every token of the test split, in nats and in the order of the text.

    Written as `token_losses.npy` (float32) into the run's folder, whole or not at all. Each rank writes its own.
    """

    def __init__(self) -> None:
        super().__init__(write_interval="batch")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loader: Any = trainer.predict_dataloaders
        path = run_folder(trainer.ckpt_path) if trainer.ckpt_path else Path(trainer.default_root_dir)
        self._path = path / "token_losses.npy"
        self._unfinished = path / f".{self._path.name}"
        if trainer.is_global_zero:
            losses = np.lib.format.open_memmap(
                self._unfinished, "w+", np.float32, (sum(document.tokens for document in loader.documents),)
            )
            losses[:] = np.nan  # what a limited number of batches leaves out
        trainer.strategy.barrier("token losses")
        self._losses = np.lib.format.open_memmap(self._unfinished, "r+")

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: Tensor,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        loader: Any = trainer.predict_dataloaders
        for place, nats in zip(loader.places(batch_idx), prediction.float().cpu().numpy(), strict=True):
            self._losses[place : place + len(nats)] = nats

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._losses.flush()
        trainer.strategy.barrier("token losses")
        if trainer.is_global_zero:
            keep_older(self._path)
            self._unfinished.rename(self._path)
            n_scored = int(np.isfinite(self._losses).sum())
            print(f"Written to {self._path}: the loss of {n_scored:,} of {len(self._losses):,} tokens, in nats")
