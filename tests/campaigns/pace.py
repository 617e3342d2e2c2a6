"""A callback that gives a tiny run the pace of a large one, so that a fault can hit it in the middle."""

import os
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

SLOW_DISK = Path("slow-disk")
"""While this file exists in the working folder, synchronizing one with the disk takes the seconds that it holds."""


class Pace(Callback):
    """Each step takes some time more, without using the processor; so does the disk, see `SLOW_DISK`."""

    def __init__(self, step_s: float) -> None:
        self.step_s = step_s

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        synchronize = os.fsync

        def slowly(descriptor: int) -> None:
            if SLOW_DISK.exists():
                time.sleep(float(SLOW_DISK.read_text()))
            synchronize(descriptor)

        os.fsync = slowly

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        time.sleep(self.step_s)
