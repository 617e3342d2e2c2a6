"""The loss of every single token, as a file."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from llp.run_folder import keep_older, move_into_place, run_folder


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
            move_into_place(self._unfinished, self._path)
            n_scored = int(np.isfinite(self._losses).sum())
            print(f"Written to {self._path}: the loss of {n_scored:,} of {len(self._losses):,} tokens, in nats")
