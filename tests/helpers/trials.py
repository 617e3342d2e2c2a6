"""`llp` in a forked child, with limits: what came of it, and whether that is what a user may be shown.

A child is a process of its own, but for the imports, which it has from this one: a start costs milliseconds instead of
seconds.
"""

import gc
import logging
import mmap
import os
import re
import resource
import select
import signal
import struct
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import NoReturn

from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from torch.optim.optimizer import register_optimizer_step_post_hook

from helpers.signal_handlers import handlers_restored
from llp import __main__ as console
from llp.decoder.decoder import Decoder
from llp.language_model import LanguageModel

MEMORY = 4 << 30
"""Bytes of address space of a child: what allocates more is refused them, as on a small machine."""
CPU_S, STILL_S = 20, 60
"""Seconds of a child: of a core in all, and by the clock without using any."""
STEPS, BATCHES = 3, 60
"""A child that has done more optimizer steps, or more batches and sampled tokens in all, runs on, and is ended."""
ENOUGH, STARTS_OTHERS = 77, 78
"""Exit statuses of the trial itself: of a child that was ended so, and of one that would start further processes."""
_ERROR = re.compile(r"^(llp\b[^:]*|llp): error: |^usage: .*error: ", re.MULTILINE)


@dataclass
class Outcome:
    """What came of a command line.

    `status` is negative for a signal; `steps` are the optimizer steps done, `left` the files that appeared or changed
    outside of the working folder; `fault` is what else is wrong, as the one who tries it finds.
    """

    status: int
    out: str
    err: str
    steps: int
    is_too_slow: bool
    left: list[str]
    seconds: float
    fault: str = ""

    @property
    def kind(self) -> str:
        """`ran`, `refused`, `starts others`, or what is wrong with it, in words that are equal for equal causes."""
        if self.fault:
            return f"wrong: {self.fault}"
        if self.is_too_slow or self.status == -signal.SIGXCPU:
            return f"wrong: no end, within {CPU_S} s of a core, or {STILL_S} s without using any"
        if self.status < 0:
            return f"wrong: {signal.Signals(-self.status).name}"
        text = self.out + self.err
        if "Traceback (most recent call last)" in text:
            return f"wrong: traceback, {_cause(text)}"
        if self.left:
            return "wrong: files outside of its folder"
        if self.status == STARTS_OTHERS:
            return "starts others"
        if self.status in (0, ENOUGH):
            return "ran"
        n_messages = len(_ERROR.findall(self.err))
        return "refused" if n_messages == 1 else f"wrong: status {self.status} with {n_messages} messages"

    @property
    def message(self) -> str:
        """The line that says why it was refused."""
        lines = self.err.splitlines()
        return next((line for line in lines if "error: " in line), "")


def _cause(text: str) -> str:
    """Type of the last traceback's exception, and the innermost frame."""
    last = text.rpartition("Traceback (most recent call last)")[2]
    frames = re.findall(r'File "(?:.*/)?([^"/]+/[^"/]+)", line (\d+), in (\S+)', last)
    raised = re.findall(r"^([A-Za-z_][\w.]*(?:Error|Exception|Warning|Interrupt|Exit|Stop)\w*)", last, re.MULTILINE)
    return f"{raised[-1] if raised else '?'} in {':'.join(frames[-1]) if frames else '?'}"


def try_llp(arguments: list[str], folder: Path, watched: Path | None = None, cpu_s: int = CPU_S) -> Outcome:
    """Run `llp` in a child.

    Args:
        arguments: What stands behind `llp`.
        folder: Where it runs; it must be there.
        watched: A folder around it in which nothing else may change.
        cpu_s: How many seconds of a core it may take.
    """
    before = None if watched is None else _files(watched, folder)
    steps = mmap.mmap(-1, 8)  # shared with the child
    out, err = folder / ".stdout", folder / ".stderr"
    started = time.monotonic()
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        _be_child(lambda: _run_llp(arguments), folder, steps, cpu_s)
    status, is_too_slow = _wait(child)
    seconds = time.monotonic() - started
    texts = [path.read_text(errors="replace") if path.exists() else "" for path in (out, err)]
    for path in (out, err):
        path.unlink(missing_ok=True)
    after = None if watched is None else _files(watched, folder)
    left = [] if before is None or after is None else sorted({str(path) for path, _ in before ^ after})
    return Outcome(status, *texts, struct.unpack("q", steps[:])[0], is_too_slow, left, seconds)


def warm_up(arguments: list[str], folder: Path) -> None:
    """Run `llp` in this process, so that its children find loaded and built what a first run loads and builds."""
    before = dict(os.environ), Path.cwd(), sys.argv
    with handlers_restored(), redirect_stdout(StringIO()), redirect_stderr(StringIO()) as err:
        os.chdir(folder)
        try:
            status = _run_llp(arguments)
        finally:
            os.environ.clear()
            os.environ.update(before[0])
            os.chdir(before[1])
            sys.argv = before[2]
    assert status == 0, err.getvalue()
    gc.collect()
    gc.freeze()  # else each child's collector goes through all of it, and copies the memory


def _files(watched: Path, but: Path) -> set[tuple[Path, tuple[int, int]]]:
    """Files in a folder with their sizes and times, but those in one of its folders, and in `cache`."""
    return {
        (path, (stat.st_size, stat.st_mtime_ns))
        for path in watched.rglob("*")
        if not path.is_relative_to(but) and "cache" not in path.parts and path.is_file() and (stat := path.stat())
    }


def _wait(child: int) -> tuple[int, bool]:
    """Exit status of a child, negative for a signal, and whether it had to be ended. None of its processes is left."""
    descriptor = os.pidfd_open(child)
    used, since, ready = [""], time.monotonic(), []
    while not ready and time.monotonic() - since < STILL_S:
        ready, _, _ = select.select([descriptor], [], [], 2)
        stat = Path(f"/proc/{child}/stat").read_text().rpartition(")")[2].split()
        if stat[0] == "R" or stat[11:13] != used:  # it waits for a core, or has had one
            used, since = stat[11:13], time.monotonic()
    os.close(descriptor)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), not ready


def _be_child(work: Callable[[], int], folder: Path, steps: mmap.mmap, cpu_s: int) -> NoReturn:
    """Do the work and end, whatever happens: nothing of the parent's is run, not even its exit handlers."""
    status = 1
    try:
        os.setsid()
        os.chdir(folder)
        for number, name in ((1, ".stdout"), (2, ".stderr")):
            descriptor = os.open(name, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_TRUNC, 0o600)
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", closefd=False) for number in (1, 2))
        _move_logs()
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
            signal.signal(signum, signal.SIG_DFL)
        used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
        limit = int(used) + cpu_s + 1
        resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        home = folder / "home"
        home.mkdir(exist_ok=True)
        os.environ.update({"HOME": str(home), "TMPDIR": str(home), "HF_HUB_OFFLINE": "1", "COLUMNS": "200"})
        _bound_work(steps)
        status = work()
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _run_llp(arguments: list[str]) -> int:
    sys.argv = ["llp", *arguments]
    return console.main()


def _move_logs() -> None:
    """Let loggers that hold the parent's standard error write to this process's."""
    names = [None, *logging.root.manager.loggerDict]
    for handler in [handler for name in names for handler in logging.getLogger(name).handlers]:
        if type(handler) is logging.StreamHandler:
            handler.stream = sys.stderr


def _bound_work(steps: mmap.mmap) -> None:
    """Count optimizer steps and batches, and end the process where there have been enough."""
    batches = 0

    def end() -> NoReturn:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(ENOUGH)

    def count_step(*_: object) -> None:
        (done,) = struct.unpack("q", steps[:])
        steps[:] = struct.pack("q", done + 1)
        if done + 1 > STEPS:
            end()

    def counted(method: Callable) -> Callable:
        def call(*arguments: object, **settings: object) -> object:
            nonlocal batches
            batches += 1
            if batches > BATCHES:
                end()
            return method(*arguments, **settings)

        return call

    def start_no_others(*_: object) -> NoReturn:
        os._exit(STARTS_OTHERS)

    register_optimizer_step_post_hook(count_step)
    for owner, name in ((LanguageModel, "training_step"), (LanguageModel, "validation_step"), (Decoder, "extend")):
        setattr(owner, name, counted(getattr(owner, name)))
    _SubprocessScriptLauncher._call_children_scripts = start_no_others
