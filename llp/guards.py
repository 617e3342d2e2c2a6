"""What ends a run that would only burn time: a loss or gradient that is not finite, and a rank that stands still."""

import os
import signal
import sys
import threading
import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from llp.callbacks import log_step
from llp.errors import SettingError, require
from llp.run_checkpoint import how_to_go_on


class FiniteGuard(Callback):
    """Ends a run before an optimizer step whose loss or gradient is not finite; logs the gradient's norm.

    The error names the step, the windows of text that it was trained on, and the command that goes on. In `16-mixed`
    a gradient that overflows is the gradient scaler's business, which leaves such steps out: there the loss counts.

    Args:
        max_skipped_steps: So many of such steps are left out (the weights stay as they are) before the next one ends
            the run. They are counted in the checkpoint and in `train/skipped_steps`.

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

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: Any, optimizer: Optimizer) -> None:
        loss, norm = pl_module.step_loss, gradient_norm(pl_module)
        has_scaler = getattr(trainer.precision_plugin, "scaler", None) is not None
        if not torch.isfinite(loss if has_scaler else loss + norm):
            if self.skipped_steps >= self.max_skipped_steps:
                raise self._error(trainer, pl_module, loss, norm)
            self.skipped_steps += 1
            optimizer.zero_grad()  # without gradients the step changes nothing
        log_step(trainer, {"grad_norm": norm, "skipped_steps": self.skipped_steps}, trainer.global_step + 1)

    def _error(self, trainer: Any, model: Any, loss: Tensor, norm: Tensor) -> SettingError:
        """Names the windows of the step whose own loss is not finite, or all of them if only the gradient is."""
        losses = torch.cat(model.window_losses)  # this rank's, in the order of its batches
        ranks = model.all_gather(losses).view(trainer.world_size, trainer.accumulate_grad_batches, -1)
        in_order = ranks.permute(1, 2, 0).flatten()  # rank r takes the samples r, r + world_size, ...
        broken = (~torch.isfinite(in_order)).nonzero().flatten().tolist() or range(len(in_order))
        places = trainer.datamodule.sample_places(len(in_order))
        shown = "".join(f"\n  {places[number]}" for number in list(broken)[:8])
        more = f"\n  … and {len(broken) - 8} more" if len(broken) > 8 else ""
        remedy = (
            f"in optimizer step {trainer.global_step + 1:,} the loss is {loss.item()} and the gradient's norm "
            f"{norm.item()}. Its windows:{shown}{more}\n"
            "Lower learning_rate, look at that text, or set guard.max_skipped_steps to leave such steps out."
        )
        return SettingError("guard.max_skipped_steps", self.max_skipped_steps, remedy)


def gradient_norm(module: LightningModule) -> Tensor:
    """The norm of the whole gradient, over the shards of all ranks too."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


class StallGuard(Callback):
    """Ends a run in which nothing has moved for a while, and names the rank that the others wait for.

    A thread of each process compares their progress, on a group of its own beside the training's collectives. A process
    that doesn't answer at all (a frozen machine) is named too.

    Args:
        timeout_s: Seconds without progress on any rank. It must exceed the longest pause of a healthy run: writing a
            checkpoint, say.

    Raises:
        SettingError: If the time is not positive.
    """

    def __init__(self, timeout_s: float = 1800.0) -> None:
        require(timeout_s > 0, "stall.timeout_s", timeout_s, "set it above 0")
        self.timeout_s = timeout_s
        self._moves = 0
        self._finished = threading.Event()
        self._thread: threading.Thread | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.world_size > 1:
            self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=2 * self.timeout_s))
            self._finished.clear()
            self._thread = threading.Thread(target=self._watch, args=(trainer,), daemon=True)
            self._thread.start()

    def _move(self, *_: Any, **__: Any) -> None:
        self._moves += 1

    on_train_batch_start = on_before_backward = on_after_backward = on_before_optimizer_step = _move
    on_train_batch_end = on_validation_batch_start = on_validation_batch_end = on_validation_end = _move

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._finish()

    def _finish(self) -> None:
        self._finished.set()
        if self._thread is not None:
            self._thread.join(timeout=5)  # the others finish too, if it is not this process alone that fails

    def _watch(self, trainer: Trainer) -> None:
        """Every so often exchange the counts of moves. All ranks go through the same rounds until all have finished."""
        seen, moved_at, pause = torch.zeros(0), time.monotonic(), min(self.timeout_s / 4, 10.0)
        while True:
            self._finished.wait(pause)
            try:
                moves, finished = self._exchange()
            except RuntimeError as error:
                if self._finished.wait(10):  # another one has ended, and so does this one: the error is said elsewhere
                    return
                self._end(trainer, str(error))
            if finished.all():
                return
            if not torch.equal(moves, seen):
                seen, moved_at = moves, time.monotonic()
            elif time.monotonic() - moved_at > self.timeout_s:
                behind = (moves == moves.min()).nonzero().flatten().tolist()
                ranks = f"rank {behind[0]}" if len(behind) == 1 else f"every one of the ranks {behind}"
                self._end(trainer, f"{ranks} has not moved for {self.timeout_s:g} s, and the others wait for it")

    def _exchange(self) -> tuple[Tensor, Tensor]:
        """How often each rank has moved, and whether it has finished: (W,) each.

        Raises:
            RuntimeError: If a rank does not answer; rank 0's names it.
        """
        state = torch.tensor([self._moves, self._finished.is_set()])
        states = [torch.empty_like(state) for _ in range(dist.get_world_size())]
        dist.monitored_barrier(self._group, timedelta(seconds=self.timeout_s), wait_all_ranks=True)
        dist.all_gather(states, state, group=self._group)
        moves, finished = torch.stack(states).unbind(1)
        return moves, finished

    def _end(self, trainer: Any, reason: str) -> None:
        """End the process from its thread: the main one waits inside a collective, where no exception reaches it."""
        if trainer.is_global_zero:
            advice = how_to_go_on(trainer.checkpoint_callback.last_model_path) if trainer.checkpoint_callback else ""
            message = f"stall.timeout_s = {self.timeout_s:g}: in optimizer step {trainer.global_step + 1:,} {reason}."
            print(f"\nllp: error: {message}\n{advice}", file=sys.stderr, flush=True)
        if trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(signal.SIGKILL)  # the processes that this one has started
        os._exit(1)
