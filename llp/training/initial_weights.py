"""A new run that starts from another run's weights."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

from llp.checkpoints import reading
from llp.errors import SettingError


class InitialWeights(Callback):
    """Starts a run from a checkpoint's weights, with an optimizer and a schedule of its own.

    The checkpoint may be that of another architecture, if its weights have the same names and shapes. What the run
    started from is kept in its checkpoints and its reports. A resumed run goes on with its own weights.

    Args:
        path: The checkpoint.

    Raises:
        SettingError: If it can't be read, or is sharded.
    """

    def __init__(self, path: str) -> None:
        self.path = Path(path)
        checkpoint = reading.read(self.path)
        reading.require_one_file(self.path)
        self.weights = checkpoint["state_dict"]
        self.origin = {
            "checkpoint": str(self.path),
            "checkpoint_sha256": reading.sha256(self.path),
            "architecture": checkpoint["architecture"],
            "step": checkpoint["global_step"],
        }

    def check_fits(self, model: LightningModule) -> None:
        """Raise a `SettingError` unless the weights have the names and shapes of the model's."""
        shapes = reading.shapes(dict(model.hparams), model)
        for name in [*shapes, *self.weights]:
            ours, theirs = shapes.get(name), getattr(self.weights.get(name), "shape", None)
            if ours != theirs:
                ours_, theirs_ = (None if shape is None else tuple(shape) for shape in (ours, theirs))
                remedy = f"its weights are not those of this model: {name} is {theirs_} there and {ours_} here"
                raise SettingError("init_from", self.path, remedy)

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.ckpt_path is None:
            with torch.no_grad():
                set_model_state_dict(pl_module, self.weights, options=StateDictOptions(full_state_dict=True))
            pl_module.initialized_from = self.origin
        self.weights = {}
