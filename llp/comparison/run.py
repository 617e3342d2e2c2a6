"""Executes the runs of a comparison: on this machine, several at a time, or as an array job of SLURM."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from tqdm import tqdm

from llp.atomic_files import checked_json, whole_file
from llp.checkpoints import reading
from llp.checkpoints.fingerprints import weights_digest
from llp.comparison.folder import ComparisonFolder, read_json
from llp.comparison.plan import Arm, Plan, PlannedRun
from llp.comparison.records import Failure, Record
from llp.comparison.spec import Settings, merged, portable
from llp.errors import SettingError, require

_POLL_S = 0.5
_MOST_STARTS = 3  # of a stage that signals end, before the run counts as failed
_LAST_LINES = 12
_MOST_TASKS = 1000  # SLURM's MaxArraySize is 1,001 by default
_PROTOCOL = (
    "window_len", "stride", "complete", "context_least", "context_mean", "context_greatest", "data_fingerprint",
    "tokenizer_fingerprint", "word_count", "official_words", "certificate", "precision",
)  # fmt: skip
"""The part of a test's protocol that doesn't change when the run is repeated."""
_DOCUMENT = ("document", "tokens", "words", "plain_words", "bytes", "nats")


def stages(folder: ComparisonFolder, run: PlannedRun, with_slices: bool) -> dict[str, list[str]]:
    """The subcommands of `llp` that execute a run, by the file that each of them leaves behind, in order."""
    last = str(folder.run(run.name) / "checkpoints/last.ckpt")
    fit = ["fit", "--config", str(folder.config(run.name)), "--name", run.name, "--ckpt_path", "auto"]
    found = {"run.json": fit}
    if run.is_tested:
        found["test.json"] = ["test", "--ckpt_path", last]
    if run.is_tested and with_slices:
        found["slices.json"] = ["predict", "--ckpt_path", last]
    return found


def is_stage_done(place: Path, file: str, steps: int) -> bool:
    """Whether the stage that leaves a file in a run's folder is done; training is when `last.ckpt` is of its end."""
    if not (place / file).exists() or file != "run.json":
        return (place / file).exists()
    last = place / "checkpoints/last.ckpt"
    is_trained = read_json(place / "run.json")["step"] >= steps and last.exists()
    return is_trained and bool(reading.read(str(last))["global_step"] == steps)


def has_diverged(place: Path) -> bool:
    """Whether a run ended because its loss or gradient was not finite."""
    try:
        return checked_json((place / "run.json").read_text(encoding="utf-8")).get("state") == "diverged"
    except (FileNotFoundError, ValueError):
        return False  # it hasn't begun


def make_record(folder: ComparisonFolder, run: PlannedRun, arm: Arm, settings: Settings, with_slices: bool) -> Record:
    """The record of a run whose stages are done.

    Raises:
        SettingError: If a file is damaged, or the test is of another checkpoint.
    """
    place, commands = folder.run(run.name), stages(folder, run, with_slices)
    content, checkpoint = read_json(place / "run.json"), reading.read(str(place / "checkpoints/last.ckpt"))
    data_settings, tokenizer = checkpoint["settings_history"][0]["settings"], checkpoint["tokenizer"]
    text = {
        "data": data_settings.get("data.data_fingerprint"),
        "tokenizer": None if tokenizer is None else tokenizer["fingerprint"],
    }
    return Record(
        run=run.name,
        arm=run.arm,
        class_path=checkpoint["architecture"],
        seed=run.seed,
        learning_rate=run.learning_rate,
        steps=run.steps,
        settings=portable(settings),
        commands=[f"OMP_NUM_THREADS={content['threads']} llp {shlex.join(command)}" for command in commands.values()],
        parameters=arm.parameters,
        pairs_per_window=arm.pairs,
        flops_per_window=arm.flops,
        positions_per_window=arm.positions,
        windows=run.steps * arm.windows_per_step,
        curve=content["validations"],
        test=_test(place / "test.json", run.steps) if "test.json" in commands else None,
        slices=read_json(place / "slices.json") if "slices.json" in commands else None,
        hashes={
            **checkpoint["fingerprints"],
            "final_weights": weights_digest(checkpoint["state_dict"].items()),
            **{name: digest for name, digest in text.items() if digest is not None},
        },
        commit=content["commit"],  # of the process that trained
        versions=content["versions"],
        device=content["device"],
    )


def _test(path: Path, step: int) -> dict[str, Any]:
    """The report of a test without what would differ if the run were repeated, and of each document only its sizes."""
    report = read_json(path)
    protocol = report["protocol"]
    remedy = f"it isn't the checkpoint of step {step}; remove the file to repeat the test"
    require(protocol["step"] == step, "test", f"step {protocol['step']} in {path}", remedy)
    whole, *documents = report["rows"]
    rows = [whole, *({name: row[name] for name in _DOCUMENT if name in row} for row in documents)]
    return {**report, "protocol": {name: protocol.get(name) for name in _PROTOCOL}, "rows": rows}


@dataclass
class _Process:
    """A stage of a run that is being executed."""

    run: PlannedRun
    stage: str
    process: subprocess.Popen[bytes]


class Workers:
    """Executes what a plan needs until nothing is left to do; nothing that is in the folder is repeated.

    Args:
        folder: The comparison's folder.
        make_plan: Makes the plan from the records that are there.
        number: The number of runs at a time.
        threads: Threads of each process.
        only: The name of a single run to execute; None for all.
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
        self._plan = make_plan()
        self._active: dict[str, _Process] = {}
        self._starts: dict[tuple[str, str], int] = {}

    def work(self) -> None:
        """Execute all runs. After a signal, the running ones save their step and end."""
        with tqdm(desc="runs", disable=None, dynamic_ncols=True, leave=False) as bar:
            try:
                self._fill()
                # When nothing runs here, what is left is executed by processes that somebody else has started.
                while self._active or self._to_do():
                    self._show(bar)
                    self._wait(bar)
                    self._fill()
            finally:
                for active in self._active.values():
                    active.process.send_signal(signal.SIGTERM)
                for active in self._active.values():
                    active.process.wait()

    def _to_do(self) -> list[PlannedRun]:
        return [run for run in self._plan.to_do() if self.only in (None, run.name)]

    def _fill(self) -> None:
        """Start runs while workers are free. Each record can change what comes next."""
        while len(self._active) < self.number:
            idle = (run for run in self._to_do() if run.name not in self._active)
            if not any(self._advance(run) for run in idle):
                return
            self._plan = self.make_plan()

    def _advance(self, run: PlannedRun) -> bool:
        """Start the next stage of a run, or record it; False if another process works on it.

        A run whose files are damaged counts as failed, and stops no other.
        """
        try:
            with self.folder.locked_log(run.name) as log:
                if log is None:
                    return False
                place, with_slices = self.folder.run(run.name), self._plan.spec.slices
                settings = merged(self._plan.settings(run), {"trainer": {"default_root_dir": str(self.folder.path)}})
                self.folder.write_config(run.name, settings)
                for file, command in stages(self.folder, run, with_slices).items():
                    if not is_stage_done(place, file, run.steps):
                        self._active[run.name] = _Process(run, file, self._start(command, log))
                        return True
                record = make_record(self.folder, run, self._plan.arms[run.arm], settings, with_slices)
                self.folder.write_record(record)
                (place / "token_losses.parquet").unlink(missing_ok=True)  # large, and its slices are in the record
        except (SettingError, ValueError, LookupError) as error:
            self.folder.fail(run.name, 1, Failure(str(error), is_diverged=False))
        return True

    def _start(self, command: list[str], log: Any) -> subprocess.Popen[bytes]:
        log.write(f"$ llp {' '.join(command)}\n".encode())
        log.flush()
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
        words = [sys.executable, "-m", "llp", *command]
        return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment)

    def _wait(self, bar: tqdm) -> None:
        """Wait for a moment, and judge the processes that have ended."""
        time.sleep(_POLL_S)
        ended = [active for active in self._active.values() if active.process.poll() is not None]
        for active in ended:
            del self._active[active.run.name]
            self._judge(active, bar)
        if ended or not self._active:
            self._plan = self.make_plan()

    def _judge(self, active: _Process, bar: tqdm) -> None:
        """Decide whether a process is done, must be started again, or has failed."""
        run, status = active.run, active.process.returncode
        place = self.folder.run(run.name)
        if status == 0 and is_stage_done(place, active.stage, run.steps):
            return
        key = run.name, active.stage
        self._starts[key] = self._starts.get(key, 0) + 1
        is_signal = status < 0 or status - 128 in (signal.SIGHUP, signal.SIGTERM, signal.SIGUSR1)
        if is_signal and self._starts[key] < _MOST_STARTS:
            return  # it resumes from its last checkpoint
        words = self._last_words(run.name)
        self.folder.fail(run.name, status, Failure(words, active.stage == "run.json" and has_diverged(place)))
        bar.write(f"{run.name} failed (status {status}): {words.splitlines()[-1] if words else 'it said nothing'}")

    def _last_words(self, name: str) -> str:
        text = self.folder.log(name).read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.rsplit("\n$ llp", 1)[-1].splitlines()[1:][-_LAST_LINES:])

    def _show(self, bar: tqdm) -> None:
        runs = [run for run in self._plan.runs if self.only in (None, run.name)]
        bar.total, bar.n = len(runs), len(runs) - len(self._to_do())
        bar.set_postfix_str(", ".join(f"{active.stage.split('.')[0]} {name}" for name, active in self._active.items()))


def submit(folder: ComparisonFolder, plan: Plan, specification: Path, script: Path, number: int) -> str:
    """Submit the runs that can be started now as an array job of SLURM; returns its answer.

    Runs that wait for the choice of a learning rate come with the next call, when these are done.

    Args:
        folder: The comparison's folder.
        plan: Its plan.
        specification: The file that the tasks read.
        script: The batch script. Its task N executes the run in line N of the list that it is given.
        number: The number of tasks that may run at a time.

    Raises:
        SettingError: If there is no SLURM, or nothing to do.
    """
    require(shutil.which("sbatch") is not None, "slurm", number, "there is no sbatch here; use --workers K instead")
    require(script.exists(), "slurm", number, f"there is no {script} here; run it in the repository's folder")
    names = [run.name for run in plan.to_do()][:_MOST_TASKS]
    require(len(names) > 0, "slurm", number, "nothing is left to do")
    # A new list: tasks of an earlier call may still be waiting, or return to the queue.
    lines = next(path for n in count(1) if not (path := folder.path / f"runs-{n}.txt").exists())
    with whole_file(lines) as temporary:
        temporary.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    log = folder.path / "logs/slurm-%A_%a.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = ["sbatch", f"--array=1-{len(names)}%{number}", f"--output={log}", str(script), str(specification)]
    done = subprocess.run([*command, str(lines)], capture_output=True, text=True)
    require(done.returncode == 0, "slurm", number, done.stderr.strip() or "sbatch failed")
    return done.stdout.strip()
