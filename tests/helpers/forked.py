"""`llp` in a fork of a process that has imported everything: as real as a new one, without the seconds of imports.

The process that forks must stay alone: no thread, no training, no file of a run open.
"""

import contextlib
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import lightning.pytorch  # noqa: F401  before the first fork
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only

import llp.commands.dispatch
import llp.commands.generate
import llp.commands.prepare  # noqa: F401
from llp import __main__ as console

LIMIT_S = 240.0  # after which a process hangs; none takes a tenth of it on a quiet machine


@dataclass(frozen=True)
class Outcome:
    """How a process ended: its exit status (that of a signal is negative), and what it said; None: it hangs."""

    status: int | None
    out: str
    err: str

    @property
    def said(self) -> str:
        return self.out + self.err


class Forked:
    """`llp` with some arguments, begun in a fork.

    Args:
        folder: Where it runs; what it says goes to files beside the folder, which may be a disk that is full.
        arguments: Those of `llp`.
        prepare: Called in the fork before `llp` is.
        rank: Of several processes of one run, and their number and port; None: it is alone.
    """

    def __init__(
        self,
        folder: Path,
        arguments: Sequence[object],
        prepare: Callable[[], None] = lambda: None,
        rank: tuple[int, int, int] | None = None,
    ) -> None:
        number = len([*folder.parent.glob(f"{folder.name}.*.out")])
        self._said = [folder.with_name(f"{folder.name}.{number}.{stream}") for stream in ("out", "err")]
        for path in self._said:
            path.touch()  # another one that starts now has another number
        self.pid = os.fork()
        self._status: int | None = None
        if self.pid == 0:
            self._run(folder, [*map(str, arguments)], prepare, rank)

    def _run(
        self, folder: Path, arguments: list[str], prepare: Callable[[], None], rank: tuple[int, int, int] | None
    ) -> None:
        status = 70
        try:
            os.setsid()
            os.chdir(folder)
            devnull = os.open(os.devnull, os.O_RDONLY)
            os.dup2(devnull, 0)
            for descriptor, path in zip((1, 2), self._said, strict=True):
                os.dup2(os.open(path, os.O_WRONLY), descriptor)
            # The streams that loggers took at their import write there, too: descriptor 2 is theirs.
            sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
            torch.set_num_threads(1)
            if rank is not None:
                own, size, port = rank
                names = {"LOCAL_RANK": own, "NODE_RANK": 0, "WORLD_SIZE": size, "MASTER_PORT": port}
                os.environ |= {name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"}
                rank_zero_only.rank = own  # type: ignore[attr-defined]
            sys.argv = ["llp", *arguments]
            prepare()
            status = console.main()
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else 1
        except BaseException:
            traceback.print_exc()
            status = 1
        finally:
            with contextlib.suppress(BaseException):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(status)  # whatever happens: nothing of the process that forked may go on in this one

    def send(self, signum: int) -> None:
        """Send it a signal, if it is still there."""
        if self.poll() is None:
            os.kill(self.pid, signum)

    def poll(self) -> int | None:
        """The exit status; None: it runs."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = os.waitstatus_to_exitcode(status) if pid else None
        return self._status

    def wait(self, limit_s: float) -> bool:
        """Wait until it has ended, or for so long; returns whether it has."""
        end, pause = time.monotonic() + limit_s, 0.005
        while self.poll() is None:
            left = end - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(pause, left))
            pause = min(1.2 * pause, 0.1)
        return True

    def outcome(self, limit_s: float = LIMIT_S) -> Outcome:
        """How it ended; one that hangs is killed."""
        if not self.wait(limit_s):
            self.send(signal.SIGKILL)
            self.wait(LIMIT_S)
            return Outcome(None, *self._texts())
        return Outcome(self.poll(), *self._texts())

    def _texts(self) -> list[str]:
        return [path.read_text(encoding="utf-8", errors="replace") for path in self._said]


def llp_in(folder: Path, *arguments: object, prepare: Callable[[], None] = lambda: None) -> Outcome:
    """Run `llp` in a folder to its end."""
    return Forked(folder, arguments, prepare).outcome()


def pair(folder: Path, arguments: Sequence[object], prepare: Callable[[], None] = lambda: None) -> list[Forked]:
    """Begin both processes of one run."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    return [Forked(folder, arguments, prepare, (rank, 2, port)) for rank in range(2)]
