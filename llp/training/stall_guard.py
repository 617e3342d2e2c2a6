"""Ends a run in which one rank is stuck and all others wait for it."""

import os
import signal
import sys
import threading
import time
from datetime import timedelta
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer

from llp.checkpoints.callback import how_to_go_on, run_checkpoint
from llp.errors import require


class StallGuard(Callback):
    """Ends a run that has made no progress for a while, and names the rank that the others wait for.

    A thread in each process reports its progress to a store that is independent of the training's collectives; rank 0
    reads it. A process that reports nothing (a frozen machine) is named too; the others name a frozen rank 0 a little
    later.

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

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._finish()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._finish()

    def _finish(self) -> None:
        self._finished.set()
        if self._thread is not None:  # a thread still inside the store when Python ends would abort the process
            self._thread.join(timeout=10)

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
                states = store.multi_get(ranks.names) if trainer.is_global_zero else None
            except RuntimeError:
                if not self._finished.wait(10):  # else rank 0 has ended just before this one does
                    self._end(trainer, "rank 0 did not respond")
                return
            if states is not None:
                ranks.update(states)
                if reason := ranks.stalled(self.timeout_s):
                    self._end(trainer, reason + _unfinished_checkpoint(trainer))

    def _end(self, trainer: Any, reason: str) -> None:
        """End the process from this thread: the main one waits inside a collective, where no exception reaches it."""
        checkpoint = run_checkpoint(trainer)
        advice = "" if checkpoint is None else how_to_go_on(checkpoint.last_model_path) + "\n"
        message = f"stall.timeout_s = {self.timeout_s:g}: in optimizer step {trainer.global_step + 1:,} {reason}."
        print(f"\nllp: error: {message}\n{advice}", end="", file=sys.stderr, flush=True)
        if trainer.strategy.launcher is not None:
            trainer.strategy.launcher.kill(signal.SIGKILL)  # the processes that this one has started
        os._exit(1)


def _unfinished_checkpoint(trainer: Trainer) -> str:
    """What rank 0 is busy with, if it is a checkpoint."""
    callback = run_checkpoint(trainer)
    if callback is None or callback.being_written is None:
        return ""
    return f"; rank 0 was still writing {callback.being_written}, and stall.timeout_s must exceed what that takes"


class Ranks:
    """What rank 0 knows of all ranks: how often each has moved, and for how long it has been silent.

    Time is counted in periods between messages, not by a clock, so that it stops while a whole job is suspended.
    """

    def __init__(self, world_size: int, period_s: float) -> None:
        self.names = [str(rank) for rank in range(world_size)]
        self._period_s = period_s
        self._states = [[0, 0] for _ in self.names]  # moves, and a clock's reading that is new with each message
        self._still_s = 0.0
        self._silent_s = [0.0] * world_size

    def update(self, messages: list[bytes]) -> None:
        """Take in the newest message of each rank after a period: its moves and the reading of its clock."""
        states = [[int(number) for number in message.split()] for message in messages]
        pairs = list(zip(self._states, states, strict=True))
        has_moved = any(before[0] != after[0] for before, after in pairs)
        self._still_s = 0.0 if has_moved else self._still_s + self._period_s
        for rank, (before, after) in enumerate(pairs):
            self._silent_s[rank] = 0.0 if before[1] != after[1] else self._silent_s[rank] + self._period_s
        self._states = states

    def stalled(self, timeout_s: float) -> str | None:
        """Which ranks the others wait for, if nothing has moved for that long; None: the run is making progress."""
        if self._still_s < timeout_s:
            return None
        silent = [rank for rank, seconds in enumerate(self._silent_s) if seconds > timeout_s / 2]
        fewest = min(moves for moves, _ in self._states)
        behind = silent or [rank for rank, (moves, _) in enumerate(self._states) if moves == fewest]
        if len(behind) == len(self._states):
            return f"no rank made progress for {timeout_s:g} s"
        names = ", ".join(f"rank {rank}" for rank in behind)
        what = "did not respond" if silent else "made no progress"
        return f"{names} {what} for {timeout_s:g} s while the others waited"
