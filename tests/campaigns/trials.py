"""`llp` in a fork with limits, and whether what came of it is what a user may be shown."""

import mmap
import os
import re
import resource
import signal
import struct
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook

from campaigns.forked import Forked, Outcome

MEMORY = 4 << 30
"""Bytes of address space of a trial: larger allocations fail, as on a small machine."""
CPU_S, WALL_S = 20, 120
"""Seconds that a trial may take, of one core and by the clock."""
STEPS, FORWARD_PASSES = 3, 500
"""A trial that has done more optimizer steps or forward passes than these works, and is ended."""
ENOUGH, STARTS_OTHERS = 77, 78
"""Exit statuses of a trial that was ended so, and of one that would start further processes."""
_TRACEBACK = "Traceback (most recent call last)"
_ERROR = re.compile(r"^(llp\b[^:]*: )?error: ", re.MULTILINE)
_METRIC = re.compile(r"\b(loss|perplexity|bits[ _]per[ _]byte|accuracy)\b.*\d", re.IGNORECASE)
_Files = dict[Path, tuple[int, int]]


@dataclass
class Trial:
    """What came of a command line.

    Attributes:
        outcome: How its process ended.
        steps: The number of optimizer steps done.
        written: Files in its folder that appeared, changed or went, the prepared text aside.
        strayed: Such files elsewhere.
        seconds: How long it took.
        fault: What else is wrong, as the caller finds.
    """

    outcome: Outcome
    steps: int
    written: list[Path]
    strayed: list[Path]
    seconds: float
    fault: str = ""

    @property
    def kind(self) -> str:
        """`ran`, `refused`, `traceback`, `starts others`, or what is wrong, in equal words for equal causes."""
        status, said = self.outcome.status, self.outcome.said
        if self.fault:
            return f"wrong: {self.fault}"
        if status is None or status == -signal.SIGXCPU:
            return f"wrong: no end within {CPU_S} s of a core, or {WALL_S} s"
        if status < 0:
            return f"wrong: {signal.Signals(-status).name}"
        if self.strayed:
            return "wrong: files outside of its folder"
        if _TRACEBACK in said:
            is_harmless = not self.written and not _METRIC.search(said.partition(_TRACEBACK)[0])
            return "traceback" if is_harmless else f"wrong: traceback after files or metrics, {self.cause}"
        if status == STARTS_OTHERS:
            return "starts others"
        if status in (0, ENOUGH):
            return "ran"
        return "refused" if _ERROR.search(self.outcome.err) else f"wrong: status {status} without a message"

    @property
    def cause(self) -> str:
        """The type of the last traceback's exception and its innermost frame."""
        last = self.outcome.said.rpartition(_TRACEBACK)[2]
        frames = re.findall(r'File "(?:.*/)?([^"/]+/[^"/]+)", line (\d+), in (\S+)', last)
        raised = re.findall(r"^([A-Za-z_][\w.]*(?:Error|Exception|Warning|Interrupt|Exit|Stop)\w*)", last, re.MULTILINE)
        return f"{raised[-1] if raised else '?'} in {':'.join(frames[-1]) if frames else '?'}"


def try_llp(arguments: list[str], folder: Path, watched: Path) -> Trial:
    """Run `llp` with limits.

    Args:
        arguments: The arguments of `llp`.
        folder: Where it runs.
        watched: A folder around it in which nothing else may change.
    """
    before = _files(watched)
    steps = mmap.mmap(-1, 8)  # shared with the fork
    started = time.monotonic()
    outcome = Forked(folder, arguments, lambda: _limit(folder, steps)).outcome(WALL_S)
    seconds = time.monotonic() - started
    changed = sorted({path for path, _ in before.items() ^ _files(watched).items()})
    strayed = [path for path in changed if not path.is_relative_to(folder)]
    written = [path for path in changed if path.is_relative_to(folder) and "home" not in path.parts]
    return Trial(outcome, struct.unpack("q", steps[:])[0], written, strayed, seconds)


def _files(watched: Path) -> _Files:
    """Files with their sizes and times, the prepared texts aside."""
    return {
        path: (stat.st_size, stat.st_mtime_ns)
        for path in watched.rglob("*")
        if "cache" not in path.parts and path.is_file() and (stat := path.stat())
    }


def _limit(folder: Path, steps: mmap.mmap) -> None:
    """Limit the memory and the time of this process, and end it when it has worked enough."""
    used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    limit = int(used) + CPU_S + 1
    resource.setrlimit(resource.RLIMIT_CPU, (limit, limit + 5))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    home = folder / "home"
    home.mkdir(exist_ok=True)
    os.environ.update({"HOME": str(home), "TMPDIR": str(home), "HF_HUB_OFFLINE": "1", "COLUMNS": "200"})
    passes = 0

    def count_pass(module: torch.nn.Module, arguments: object) -> None:
        nonlocal passes
        if isinstance(module, torch.nn.Embedding):  # once in every forward pass
            passes += 1
            _end_if(passes > FORWARD_PASSES, ENOUGH)

    def count_step(*_: object) -> None:
        (done,) = struct.unpack("q", steps[:])
        steps[:] = struct.pack("q", done + 1)
        _end_if(done + 1 > STEPS, ENOUGH)

    def start_no_others(event: str, arguments: tuple[object, ...]) -> None:
        if event == "subprocess.Popen":
            _end_if(arguments[0] == sys.executable, STARTS_OTHERS)

    register_module_forward_pre_hook(count_pass)
    register_optimizer_step_post_hook(count_step)
    sys.addaudithook(start_no_others)


def _end_if(condition: bool, status: int) -> None:
    if condition:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
