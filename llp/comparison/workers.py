"""Carries out the runs of a comparison on this machine, several at a time, each in processes of `llp`."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from tqdm import tqdm

from llp.comparison import recording
from llp.comparison.folder import ComparisonFolder
from llp.comparison.plan import Plan, PlannedRun
from llp.comparison.study import Failure
from llp.errors import SettingError

_POLL_S = 0.5
_LONG_POLL_S = 3.0  # where others work
_MOST_STARTS = 3  # of a stage that signals end, before the run is left alone
_LAST_LINES = 12


@dataclass
class _Process:
    """A stage of a run that is being carried out."""

    run: PlannedRun
    stage: str
    process: subprocess.Popen[bytes]


class Workers:
    """Runs what a plan needs until nothing is left to do; what is in the folders already is never repeated.

    Args:
        folder: The comparison's.
        make_plan: The plan according to the records that are there now.
        number: How many runs at a time.
        threads: Of each process.
        only: The name of the one run to carry out; None: all.
    """

    def __init__(
        self,
        folder: ComparisonFolder,
        make_plan: Callable[[], Plan],
        number: int,
        threads: int,
        only: str | None = None,
    ) -> None:
        self.folder, self.make_plan, self.number, self.threads = folder, make_plan, number, threads
        self.only = only
        self._refresh()
        self._active: dict[str, _Process] = {}
        self._starts: dict[tuple[str, str], int] = {}

    def work(self) -> None:
        """Carry out all runs. A signal lets the running ones save their step, and ends this."""
        try:
            with self._bar() as bar:
                self._fill()
                # What is left when nothing runs here is in the hands of processes that somebody else has started.
                while self._active or self._to_do():
                    self._wait(bar)
                    self._fill()
        finally:
            self._stop()

    def _refresh(self) -> None:
        """Plan according to what is there now."""
        self._plan = self.make_plan()
        self._runs = [run for run in self._plan.runs() if self.only in (None, run.name)]

    def _to_do(self) -> list[PlannedRun]:
        return [run for run in self._runs if not self._plan.is_done(run) and run.name not in self._plan.failed]

    # Starting

    def _fill(self) -> None:
        """Start runs while workers are free. What is recorded on the way can change what comes next."""
        while len(self._active) < self.number and self._advance_first():
            self._refresh()

    def _advance_first(self) -> bool:
        """Advance the first run that nobody is at; False: there is none."""
        return any(self._advance_or_fail(run) for run in self._to_do() if run.name not in self._active)

    def _advance_or_fail(self, run: PlannedRun) -> bool:
        """Advance a run; one whose files are damaged has failed, and stops no other."""
        try:
            return self._advance(run)
        except (SettingError, ValueError, LookupError) as error:
            self.folder.fail(run.name, 1, Failure(str(error), is_diverged=False))
            return True

    def _advance(self, run: PlannedRun) -> bool:
        """Start the next stage of a run, or record it; False: another process is at it."""
        with self.folder.locked_log(run.name) as log:
            if log is None:
                return False
            self.folder.write_config(run)
            stages = recording.commands(self.folder, run, self._plan.specification.slices)
            place = self.folder.run(run.name)
            for file, stage in stages.items():
                if not recording.is_stage_done(place, file, run):
                    command = [sys.executable, "-m", "llp", *stage]
                    log.write(f"$ llp {' '.join(stage)}\n".encode())
                    log.flush()
                    environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
                    process = subprocess.Popen(
                        command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
                    )
                    self._active[run.name] = _Process(run, file, process)
                    return True
            contestant = self._plan.contestants[run.arm]
            self.folder.write_record(recording.record(self.folder, run, contestant, stages))
            (place / "token_losses.parquet").unlink(missing_ok=True)  # large, and its slices are in the record
            return True

    # Ending

    def _wait(self, bar: tqdm) -> None:
        """Wait for a moment; take note of the processes that have ended."""
        time.sleep(_POLL_S if self._active else _LONG_POLL_S)
        ended = [active for active in self._active.values() if active.process.poll() is not None]
        for active in ended:
            del self._active[active.run.name]
            self._judge(active, bar)
        if ended or not self._active:
            self._refresh()
        self._show(bar)

    def _judge(self, active: _Process, bar: tqdm) -> None:
        """What the end of a process means."""
        run, status = active.run, active.process.returncode
        if status == 0 and recording.is_stage_done(self.folder.run(run.name), active.stage, run):
            return
        key = run.name, active.stage
        self._starts[key] = self._starts.get(key, 0) + 1
        is_signal = status < 0 or status - 128 in (signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1)
        if is_signal and self._starts[key] < _MOST_STARTS:
            return  # it goes on from its last checkpoint
        words = self._last_words(run.name)
        is_diverged = active.stage == "run.json" and recording.has_diverged(self.folder.run(run.name))
        self.folder.fail(run.name, status, Failure(words, is_diverged))
        bar.write(f"{run.name} failed (status {status}): {words.splitlines()[-1] if words else 'it said nothing'}")

    def _last_words(self, name: str) -> str:
        text = self.folder.log(name).read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.rsplit("\n$ llp", 1)[-1].splitlines()[1:][-_LAST_LINES:])

    def _stop(self) -> None:
        """Let what runs save its step and end."""
        for active in self._active.values():
            active.process.send_signal(signal.SIGTERM)
        for active in self._active.values():
            active.process.wait()

    # Showing

    def _bar(self) -> tqdm:
        form = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
        return tqdm(total=1.0, bar_format=form, disable=None, dynamic_ncols=True, leave=False)

    def _show(self, bar: tqdm) -> None:
        """All runs in one line: how many are done, and how far those are that run now."""
        runs, to_do = self._runs, self._to_do()
        shares = {
            name: recording.progress(self.folder.run(name)) / active.run.steps for name, active in self._active.items()
        }
        cost = {run.name: run.steps * self._plan.contestants[run.arm].flops for run in runs}
        left = sum(cost[run.name] for run in to_do) - sum(cost[name] * share for name, share in shares.items())
        bar.total = float(sum(cost.values()))
        bar.n = bar.total - left
        bar.set_description_str(f"{len(runs) - len(to_do)} of {len(runs)} runs", refresh=False)
        now = (f"{self._active[name].stage.split('.')[0]} {name} {share:.0%}" for name, share in shares.items())
        bar.set_postfix_str(", ".join(now))
