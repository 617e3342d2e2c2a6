"""Randomness that a resumed run draws again: every batch is seeded anew."""

import os
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class BatchSeed(Callback):
    """Seeds every batch from (seed, batch, rank): a resumed run draws what the uninterrupted one would.

    Under data parallelism each rank draws its own dropout.
    """

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        seed = os.environ.get("PL_GLOBAL_SEED", "0")  # where Lightning's `seed_everything` leaves it
        batches = trainer.fit_loop.epoch_loop.total_batch_idx
        entropy = np.random.SeedSequence([int(seed), batches, trainer.global_rank])
        torch.manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> 1))
