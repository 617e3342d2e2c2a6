"""Executes the runs of a comparison or a sweep: on this machine, several at a time, or as an array job of SLURM."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import IO

from tqdm import tqdm

from llp.atomic_files import write_whole
from llp.comparison.folder import ComparisonFolder
from llp.comparison.records import Failure
from llp.comparison.spec import Settings, merged
from llp.errors import SettingError, require

_POLL_S = 0.5
_SHOWN_EVERY_S = 60.0
_MOST_STARTS = 3  # of a stage that signals end, before the run counts as failed
_LAST_LINES = 12
_MOST_TASKS = 1000  # SLURM's MaxArraySize is 1,001 by default
_DOING = {"run.json": "training", "test.json": "testing", "slices.json": "scoring tokens"}


class Work(ABC):
    """The runs of a comparison or a sweep by their names, and what is left to do, from what is in the folder now."""

    folder: ComparisonFolder
    names: list[str]
    """All runs."""
    to_do: list[str]
    """The runs that can be started now and are neither done nor failed."""

    @abstractmethod
    def settings(self, name: str) -> Settings:
        """The configuration of `llp fit` for a run."""

    def stages(self, name: str) -> dict[str, list[str]]:
        """The subcommands of `llp` that execute a run, by the file that each of them leaves behind, in order."""
        return {"run.json": ["fit", "--config", str(self.folder.config(name)), "--name", name, "--ckpt_path", "auto"]}

    def is_stage_done(self, name: str, file: str) -> bool:
        """Whether the stage that leaves a file in a run's folder is done."""
        return self.folder.state(name) == "finished"

    def record(self, name: str, settings: Settings) -> None:  # noqa: B027
        """Keep what is to be kept of a run whose stages are done; what is in its folder is kept anyway."""

    def require_success(self, only: str | None) -> None:
        """Raise a `SettingError` if runs have failed, all of them or the only one, so that the exit status shows it."""
        all_failed = self.folder.failed()
        failed = [name for name in self.names if name in all_failed and only in (None, name)]
        remedy = f"failed; see {self.folder.path / 'logs'}, and try again with --retry"
        require(not failed, "runs", ", ".join(failed), remedy)


@dataclass
class _Process:
    """A stage of a run that is being executed."""

    work: Work  # as of its start: what is planned may have changed since
    name: str
    stage: str
    process: subprocess.Popen[bytes]
    started_at: float


class Workers:
    """Executes the runs of a comparison or a sweep until nothing is left to do; nothing in its folder is repeated.

    Args:
        make_work: What is to be done, from what is in the folder.
        number: The number of runs at a time.
        only: The name of a single run to execute; None for all.
    """

    def __init__(self, make_work: Callable[[], Work], number: int, only: str | None = None) -> None:
        self.make_work, self.number, self.only = make_work, number, only
        self.work = make_work()
        self.folder, names = self.work.folder, self.work.names
        require(only is None or only in names, "run", only, f"there is no such run now; there are {', '.join(names)}")
        self._active: dict[str, _Process] = {}
        self._starts: dict[tuple[str, str], int] = {}
        self._shown: Sequence[tuple[str, str]] | None = None
        self._shown_at = 0.0

    def execute(self) -> None:
        """Execute all runs. After a signal, the running ones save their step and end."""
        try:
            self._fill()
            # When nothing runs here, what is left is executed by processes that somebody else has started.
            while self._active or self._to_do():
                self._show()
                self._wait()
                self._fill()
        finally:
            for active in self._active.values():
                active.process.send_signal(signal.SIGTERM)
            for active in self._active.values():
                active.process.wait()

    def _to_do(self) -> list[str]:
        return [name for name in self.work.to_do if self.only in (None, name)]

    def _fill(self) -> None:
        """Start runs while workers are free. Each record can change what comes next."""
        while len(self._active) < self.number:
            idle = (name for name in self._to_do() if name not in self._active)
            if not any(self._advance(name) for name in idle):
                return
            self.work = self.make_work()

    def _advance(self, name: str) -> bool:
        """Start the next stage of a run, or record it; False if another process works on it.

        A run whose files are damaged counts as failed, and stops no other.
        """
        try:
            with self.folder.locked_log(name) as log:
                if log is None:
                    return False
                settings = merged(self.work.settings(name), {"trainer": {"default_root_dir": str(self.folder.path)}})
                self.folder.write_config(name, settings)
                for file, command in self.work.stages(name).items():
                    if not self.work.is_stage_done(name, file):
                        process = self._start(command, log)
                        self._active[name] = _Process(self.work, name, file, process, time.monotonic())
                        return True
                self.work.record(name, settings)
        except (SettingError, ValueError, LookupError) as error:
            self.folder.fail(name, 1, Failure(str(error), is_diverged=False))
        return True

    def _start(self, command: list[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        log.write(f"$ llp {' '.join(command)}\n".encode())
        log.flush()
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads(self.number))}
        words = [sys.executable, "-m", "llp", *command]
        return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)

    def _wait(self) -> None:
        """Wait for a moment, and judge the processes that have ended."""
        time.sleep(_POLL_S)
        ended = [active for active in self._active.values() if active.process.poll() is not None]
        for active in ended:
            del self._active[active.name]
            self._judge(active)
        if ended or not self._active:
            self.work = self.make_work()

    def _judge(self, active: _Process) -> None:
        """Decide whether a process is done, must be started again, or has failed."""
        name, status = active.name, active.process.returncode
        if status == 0 and active.work.is_stage_done(name, active.stage):
            return
        key = name, active.stage
        self._starts[key] = self._starts.get(key, 0) + 1
        is_signal = status < 0 or status - 128 in (signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1)
        if is_signal and self._starts[key] < _MOST_STARTS:
            return  # it resumes from its last checkpoint
        has_diverged = active.stage == "run.json" and self.folder.state(name) == "diverged"
        words = self._last_words(name)
        self.folder.fail(name, status, Failure(words, has_diverged))
        last = words.splitlines()[-1] if words else "it said nothing"
        print(f"{name} failed (status {status}): {last}", file=sys.stderr, flush=True)

    def _last_words(self, name: str) -> str:
        text = self.folder.log(name).read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.rsplit("\n$ llp", 1)[-1].splitlines()[1:][-_LAST_LINES:])

    def _show(self) -> None:
        """Say what is under way and what is left, whenever a stage begins or ends and once a minute."""
        under_way = [(name, active.stage) for name, active in self._active.items()]
        if under_way == self._shown and time.monotonic() - self._shown_at < _SHOWN_EVERY_S:
            return
        self._shown, self._shown_at = under_way, time.monotonic()
        runs = [name for name in self.work.names if self.only in (None, name)]
        n_left = len({*self._to_do()} | self._active.keys())
        n_failed = len(self.folder.failed().keys() & set(runs))
        done = f"{len(runs) - n_left - n_failed} of {len(runs)} runs done, {n_failed} failed, {n_left} left"
        lines = [f"{done}, {len(self._active)} of them under way here"]
        for name, active in self._active.items():
            lasted = tqdm.format_interval(time.monotonic() - active.started_at)
            left = training_left(self.folder.run(name)) if active.stage == "run.json" else ""
            lines.append(f"  {name}: {_DOING[active.stage]} for {lasted}{left}")
        print(*lines, sep="\n", file=sys.stderr, flush=True)


def training_left(run: Path) -> str:
    """How far the training in a run's folder is, and an estimate of the rest; empty if unknown."""
    try:
        record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ""  # it hasn't begun
    step, total = record["step"], record["total_steps"]
    if not step or record["state"] != "running":
        return ""
    left_s = record["training_seconds"] / step * (total - step)
    return f", step {step:,} of {total:,}, about {tqdm.format_interval(left_s)} left"


def threads(workers: int) -> int:
    """Each worker's share of this machine's cores."""
    return max(1, len(os.sched_getaffinity(0)) // workers)


def submit(command: str, work: Work, specification: Path, script: Path, number: int) -> str:
    """Submit the runs that can be started now as an array job of SLURM; returns its answer.

    Runs that wait for the choice of a learning rate come with the next call, when these are done.

    Args:
        command: `compare` or `sweep`.
        work: What is to be done.
        specification: The file that the tasks read.
        script: The batch script. Its task N executes the run in line N of the list that it is given.
        number: The number of tasks that may run at a time.

    Raises:
        SettingError: If there is no SLURM, or nothing to do.
    """
    require(shutil.which("sbatch") is not None, "slurm", number, "there is no sbatch here; use --workers K instead")
    require(script.exists(), "slurm", number, f"there is no {script} here; run it in the repository's folder")
    folder, names = work.folder, work.to_do[:_MOST_TASKS]
    require(len(names) > 0, "slurm", number, "nothing is left to do")
    # A new list: tasks of an earlier call may still be waiting, or return to the queue.
    lines = next(path for n in count(1) if not (path := folder.path / f"runs-{n}.txt").exists())
    write_whole(lines, "".join(f"{name}\n" for name in names))
    log = folder.path / "logs/slurm-%A_%a.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    words = ["sbatch", f"--array=1-{len(names)}%{number}", f"--output={log}", script, specification, lines, command]
    done = subprocess.run([*map(str, words)], capture_output=True, text=True)
    require(done.returncode == 0, "slurm", number, done.stderr.strip() or "sbatch failed")
    return done.stdout.strip()
