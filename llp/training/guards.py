"""What ends a run that cannot go on: a loss that is not finite, a rank that is stuck, memory that runs out."""

import os
import signal
import sys
import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from llp.checkpoints.callback import how_to_resume, run_checkpoint
from llp.errors import SettingError, require
from llp.lightning_internals import untyped
from llp.training.metrics import log_step
from llp.training_module import TrainingModule

if TYPE_CHECKING:
    from datamodules.base import LanguageDataModule

_SHOWN = 8  # windows that a message names


class NotFiniteError(SettingError):
    """The loss or the gradient is not finite: the run has diverged."""


class FiniteGuard(Callback):
    """Ends a run before an optimizer step whose loss or gradient is not finite; logs the gradient's norm.

    The error names the step and the windows of text that it was trained on. In `16-mixed` the gradient scaler skips
    steps whose gradient overflows, so only the loss is checked.

    Args:
        max_skipped_steps: How many such steps to skip, leaving the weights as they are, before the next one ends the
            run. Checkpoints store their number, which is logged as `train/skipped_steps`.

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

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        model = cast(TrainingModule, pl_module)
        loss, norm = model.step_loss, gradient_norm(model)
        has_scaler = getattr(trainer.precision_plugin, "scaler", None) is not None
        if not torch.isfinite(loss if has_scaler else loss + norm):
            if self.skipped_steps >= self.max_skipped_steps:
                raise self._error(trainer, model, loss, norm)
            self.skipped_steps += 1
            optimizer.zero_grad()  # without gradients the step changes nothing
        log_step(trainer, {"grad_norm": norm, "skipped_steps": self.skipped_steps}, trainer.global_step + 1)

    def _error(self, trainer: Trainer, model: TrainingModule, loss: Tensor, norm: Tensor) -> NotFiniteError:
        """Name the windows whose own loss is not finite, or all windows of the step if only the gradient is not."""
        losses = torch.cat(model.window_losses)  # this rank's, in the order of its batches
        ranks = cast(Tensor, model.all_gather(losses)).view(trainer.world_size, trainer.accumulate_grad_batches, -1)
        in_order = ranks.permute(1, 2, 0).flatten()  # rank r takes the samples r, r + world_size, ...
        broken = (~torch.isfinite(in_order)).nonzero().flatten().tolist() or list(range(len(in_order)))
        names = cast("LanguageDataModule", untyped(trainer).datamodule).describe_samples(len(in_order))
        shown = "".join(f"\n  {names[number]}" for number in broken[:_SHOWN])
        more = f"\n  … and {len(broken) - _SHOWN} more" if len(broken) > _SHOWN else ""
        remedy = (
            f"in optimizer step {trainer.global_step + 1:,} the loss is {loss.item()} and the gradient's norm "
            f"{norm.item()}. Windows of this step:{shown}{more}\n"
            "Lower learning_rate, look at that text, or set guard.max_skipped_steps to skip such steps."
        )
        return NotFiniteError("guard.max_skipped_steps", self.max_skipped_steps, remedy)


def gradient_norm(module: LightningModule) -> Tensor:
    """The norm of the whole gradient, including the shards of all ranks: ()."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in module.parameters() if p.grad is not None])
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


class StallGuard(Callback):
    """Ends a run that has made no progress for a while, and names the rank that the others wait for.

    The process group's own timeout does not name it, and its store is not asked while a collective waits. Here a thread
    in each process reports progress to a store of its own, which rank 0 reads. A process that reports nothing (a frozen
    or lost machine) is named too; if that is rank 0, the others notice a little later.

    Args:
        timeout_s: Seconds without progress on any rank. It must exceed the longest pause of a healthy run, such as
            writing a checkpoint.

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
            self._finished.clear()
            self._thread = threading.Thread(target=self._watch, args=(trainer, self._open_store(trainer)), daemon=True)
            self._thread.start()

    def _open_store(self, trainer: Trainer) -> dist.TCPStore:
        """A store in rank 0's process, in which every rank has an entry."""
        host, timeout = os.environ["MASTER_ADDR"], timedelta(seconds=self.timeout_s)
        store = dist.TCPStore(host, 0, is_master=True, timeout=timeout) if trainer.is_global_zero else None
        port = trainer.strategy.broadcast(0 if store is None else store.port)
        store = store or dist.TCPStore(host, port, is_master=False, timeout=timeout)
        store.set(str(trainer.global_rank), "0 0")
        trainer.strategy.barrier("stall guard")
        return store

    def _move(self, *_: Any, **__: Any) -> None:
        self._moves += 1

    on_train_batch_start = on_before_backward = on_after_backward = on_before_optimizer_step = _move
    on_train_batch_end = on_validation_batch_start = on_validation_batch_end = on_validation_end = _move

    def _finish(self, *_: Any, **__: Any) -> None:
        self._finished.set()
        if self._thread is not None:  # a thread still inside the store when Python ends would abort the process
            self._thread.join(timeout=10)

    on_train_end = on_exception = _finish

    def _watch(self, trainer: Trainer, store: dist.TCPStore) -> None:
        period_s = min(self.timeout_s / 4, 10.0)
        ranks, moves, still_s = Ranks(trainer.world_size, period_s), 0, 0.0
        while not self._finished.wait(period_s):
            still_s = 0.0 if moves != self._moves else still_s + period_s
            moves = self._moves
            # Rank 0 has had time to end the run, and has not. Asking it would block: every call of a store except `set`
            # waits for its answer, without a limit.
            if still_s > self.timeout_s + 4 * period_s:
                self._end(trainer, "rank 0 did not respond")
            try:
                store.set(str(trainer.global_rank), f"{self._moves} {time.monotonic_ns()}")
                stored = store.multi_get(list(map(str, range(trainer.world_size)))) if trainer.is_global_zero else None
            except RuntimeError:
                if not self._finished.wait(10):  # otherwise rank 0 has only ended just before this one
                    self._end(trainer, "rank 0 did not respond")
                return
            if stored is not None:
                ranks.update([(int(moves), int(clock)) for moves, clock in map(bytes.split, stored)])
                if reason := ranks.stalled(self.timeout_s):
                    self._end(trainer, reason)

    def _end(self, trainer: Trainer, reason: str) -> None:
        """End the process from this thread: the main one waits inside a collective, where no exception reaches it."""
        checkpoint = run_checkpoint(trainer)
        advice = "" if checkpoint is None else how_to_resume(checkpoint.last_model_path) + "\n"
        message = f"stall.timeout_s = {self.timeout_s:g}: in optimizer step {trainer.global_step + 1:,} {reason}."
        print(f"\nllp: error: {message}\n{advice}", end="", file=sys.stderr, flush=True)
        if trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(signal.SIGKILL)  # the processes that this one has started
        os._exit(1)


class Ranks:
    """What rank 0 knows of all ranks: whether they move, and for how long each has been silent.

    Time is counted in periods between messages instead of by a clock, so that it stops while a whole job is suspended.
    """

    def __init__(self, world_size: int, period_s: float) -> None:
        self._period_s, self._still_s, self._silent_s = period_s, 0.0, [0.0] * world_size
        self._messages = [(0, 0)] * world_size  # how often each has moved, and a clock reading that is always new

    def update(self, messages: list[tuple[int, int]]) -> None:
        """Take the newest message of each rank, once in a period."""
        pairs = [*zip(self._messages, messages, strict=True)]
        has_moved = any(before[0] != after[0] for before, after in pairs)
        self._still_s = 0.0 if has_moved else self._still_s + self._period_s
        silent = zip(self._silent_s, pairs, strict=True)
        self._silent_s = [0.0 if before != after else for_s + self._period_s for for_s, (before, after) in silent]
        self._messages = messages

    def stalled(self, timeout_s: float) -> str | None:
        """Which ranks the others wait for, if nothing has moved for that long; None while the run makes progress."""
        if self._still_s < timeout_s:
            return None
        silent = [rank for rank, seconds in enumerate(self._silent_s) if seconds > timeout_s / 2]
        fewest = min(moves for moves, _ in self._messages)
        behind = silent or [rank for rank, (moves, _) in enumerate(self._messages) if moves == fewest]
        if len(behind) == len(self._messages):
            return f"no rank made progress for {timeout_s:g} s"
        names = ", ".join(f"rank {rank}" for rank in behind)
        what = "did not respond" if silent else "made no progress"
        return f"{names} {what} for {timeout_s:g} s while the others waited"


_REMEDY = (
    "lower data.init_args.batch_size (trainer.accumulate_grad_batches makes up for it) or the model's size, or set "
    "model.init_args.activation_checkpointing or trainer.precision bf16-mixed, or use configs/trainer/fsdp2.yaml on "
    "several devices"
)


def out_of_memory(error: BaseException | None) -> SettingError | None:
    """The error to show if this one, or one that it was raised from, says that memory ran out; otherwise None."""
    while error is not None and not _is_out_of_memory(error):
        error = error.__cause__
    if error is None:
        return None
    device = "GPU" if isinstance(error, torch.OutOfMemoryError) else "CPU"
    reason = " ".join(str(error).split()) or "not enough memory"
    return SettingError("memory", device, f"it is not enough ({reason}); {_REMEDY}")


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # torch raises plain RuntimeErrors for allocations on the CPU and for sizes beyond its integers.
    words = "DefaultCPUAllocator", "Storage size calculation overflowed"
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)
