"""Ends a run at a loss or gradient that is not finite, before it spoils the weights."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from llp.errors import SettingError, require
from llp.training.metrics import log_step


class NotFiniteError(SettingError):
    """A loss or gradient that is not finite: the run has diverged."""


class FiniteGuard(Callback):
    """Ends a run before an optimizer step whose loss or gradient is not finite; logs the gradient's norm.

    The error names the step, the windows of text it was trained on, and the command that resumes the run. In
    `16-mixed` the gradient scaler skips steps whose gradient overflows, so only the loss is checked.

    Args:
        max_skipped_steps: How many such steps to skip, leaving the weights as they are, before the next one ends the
            run. They are counted in the checkpoint and in `train/skipped_steps`.

    Raises:
        SettingError: If the number is negative.
    """

    def __init__(self, max_skipped_steps: int = 0) -> None:
        require(max_skipped_steps >= 0, "guard.max_skipped_steps", max_skipped_steps, "set it to 0 or more")
        self.max_skipped_steps = max_skipped_steps
        self.skipped_steps = 0

    def state_dict(self) -> dict[str, Any]:
        return {"skipped_steps": self.skipped_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped_steps = state_dict["skipped_steps"]

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Optimizer) -> None:
        loss, norm = pl_module.step_loss, gradient_norm(pl_module)
        has_scaler = getattr(trainer.precision_plugin, "scaler", None) is not None
        if not torch.isfinite(loss if has_scaler else loss + norm):
            if self.skipped_steps >= self.max_skipped_steps:
                raise self._error(trainer, pl_module, loss, norm)
            self.skipped_steps += 1
            optimizer.zero_grad()  # without gradients the step changes nothing
        log_step(trainer, {"grad_norm": norm, "skipped_steps": self.skipped_steps}, trainer.global_step + 1)

    def _error(self, trainer: Any, model: Any, loss: Tensor, norm: Tensor) -> NotFiniteError:
        """Names the step's windows whose own loss is not finite, or all of them if only the gradient is not."""
        losses = torch.cat(model.window_losses)  # this rank's, in the order of its batches
        ranks = model.all_gather(losses).view(trainer.world_size, trainer.accumulate_grad_batches, -1)
        in_order = ranks.permute(1, 2, 0).flatten()  # rank r takes the samples r, r + world_size, ...
        broken = (~torch.isfinite(in_order)).nonzero().flatten().tolist() or range(len(in_order))
        windows = trainer.datamodule.describe_samples(len(in_order))
        shown = "".join(f"\n  {windows[number]}" for number in list(broken)[:8])
        more = f"\n  … and {len(broken) - 8} more" if len(broken) > 8 else ""
        remedy = (
            f"in optimizer step {trainer.global_step + 1:,} the loss is {loss.item()} and the gradient's norm "
            f"{norm.item()}. Windows of this step:{shown}{more}\n"
            "Lower learning_rate, look at that text, or set guard.max_skipped_steps to skip such steps."
        )
        return NotFiniteError("guard.max_skipped_steps", self.max_skipped_steps, remedy)


def gradient_norm(module: LightningModule) -> Tensor:
    """The norm of the whole gradient, including the shards of all ranks."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm
