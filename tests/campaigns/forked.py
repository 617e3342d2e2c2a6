"""`llp` in a fork of a process that has imported everything: as real as a new process, without seconds of imports.

The process that forks must start no thread, train nothing and keep no file of a run open.
"""

import faulthandler
import itertools
import logging
import os
import pkgutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import NoReturn

import lightning.pytorch  # noqa: F401  before the first fork
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_only

import llp
from llp import __main__ as console

LIMIT_S = 240.0
"""A process that runs longer than this hangs; on a quiet machine none takes a tenth of it."""
_NUMBERS = itertools.count()


def import_all() -> None:
    """Import what commands import when they run, so that forks find it."""
    for name in ("torch.utils.tensorboard", "torch.distributed.fsdp", "torch.distributed.checkpoint", "datamodules"):
        import_module(name)
    for module in pkgutil.walk_packages(llp.__path__, "llp."):
        if not module.name.startswith(
            ("llp.harness", "llp.hf", "llp.export")
        ):  # they take long, and no campaign needs them
            import_module(module.name)


@dataclass(frozen=True)
class Outcome:
    """How a process ended.

    Attributes:
        status: Its exit status, negative for a signal, or None if it had to be killed after `LIMIT_S`.
        out: Its standard output.
        err: Its standard error.
    """

    status: int | None
    out: str
    err: str

    @property
    def said(self) -> str:
        return self.out + self.err


def become(folder: Path, arguments: Sequence[str], streams: Sequence[int], prepare: Callable[[], None]) -> NoReturn:
    """Run `llp` in this process and end it; nothing of the process that forked goes on, not even its exit handlers.

    Args:
        folder: Where it runs.
        arguments: The arguments of `llp`.
        streams: Descriptors of standard input, output and error.
        prepare: Called before `llp` is.
    """
    status = 1
    try:
        os.setsid()
        os.chdir(folder)
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, "utf-8", closefd=False) for number in (1, 2))
        names = [None, *logging.root.manager.loggerDict]
        for handler in {handler for name in names for handler in logging.getLogger(name).handlers}:
            if type(handler) is logging.StreamHandler:
                handler.stream = sys.stderr
        for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM, signal.SIGCHLD):
            signal.signal(signum, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        faulthandler.disable()  # it would report a crash that a test has made as one of the tests
        torch.set_num_threads(1)
        sys.argv = ["llp", *arguments]
        prepare()
        status = console.main()
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


class Forked:
    """`llp` with some arguments, started in a fork.

    Args:
        folder: Where it runs. Its output goes to files beside the folder, which may be a full disk.
        arguments: The arguments of `llp`.
        prepare: Called in the fork before `llp` is.
        rank: Its rank among several processes of one run, their number and their port; None if it is alone.
    """

    def __init__(
        self,
        folder: Path,
        arguments: Sequence[object],
        prepare: Callable[[], None] = lambda: None,
        rank: tuple[int, int, int] | None = None,
    ) -> None:
        number = next(_NUMBERS)
        self._paths = [folder.with_name(f"{folder.name}.{number}.{stream}") for stream in ("out", "err")]
        self._status: int | None = None
        flags = os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_TRUNC
        streams = [os.open(os.devnull, os.O_RDONLY), *(os.open(path, flags, 0o600) for path in self._paths)]

        def prepare_rank() -> None:
            _take_rank(rank)
            prepare()

        self.pid = os.fork()
        if self.pid == 0:
            become(folder, [*map(str, arguments)], streams, prepare_rank)
        for stream in streams:
            os.close(stream)

    def send(self, signum: int) -> None:
        """Send it a signal, if it is still there."""
        if self.poll() is None:
            os.kill(self.pid, signum)

    def poll(self) -> int | None:
        """The exit status, or None while it runs. Processes that it has left behind are killed with it."""
        if self._status is None and os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            self._status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self._status

    def wait(self, limit_s: float) -> bool:
        """Wait until it has ended, for at most `limit_s` seconds; returns whether it has."""
        end, pause = time.monotonic() + limit_s, 0.005
        while self.poll() is None:
            left = end - time.monotonic()
            if left <= 0:
                return False
            time.sleep(min(pause, left))
            pause = min(1.2 * pause, 0.1)
        return True

    def outcome(self, limit_s: float = LIMIT_S) -> Outcome:
        """How it ended; it is killed if it hangs. To be called once."""
        has_ended = self.wait(limit_s)
        if not has_ended:
            self.send(signal.SIGKILL)
            self.wait(LIMIT_S)
        texts = [path.read_text(encoding="utf-8", errors="replace") for path in self._paths]
        for path in self._paths:
            path.unlink()
        return Outcome(self.poll() if has_ended else None, *texts)


def _take_rank(rank: tuple[int, int, int] | None) -> None:
    if rank is None:
        return
    own, size, port = rank
    names = {"LOCAL_RANK": own, "NODE_RANK": 0, "WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in names.items()} | {"MASTER_ADDR": "127.0.0.1"}
    rank_zero_only.rank = own  # type: ignore[attr-defined]


def llp_in(folder: Path, *arguments: object, prepare: Callable[[], None] = lambda: None) -> Outcome:
    """Run `llp` in a folder to its end."""
    return Forked(folder, arguments, prepare).outcome()


def pair(folder: Path, arguments: Sequence[object], prepare: Callable[[], None] = lambda: None) -> list[Forked]:
    """Start both processes of one run."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    return [Forked(folder, arguments, prepare, (rank, 2, port)) for rank in range(2)]
