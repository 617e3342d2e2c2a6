"""Faults of many kinds, one at a time, and what came of each. `tests/faults.py` injects them by the hundred.

An injection is a function of its random numbers alone; only when a signal arrives depends on the machine's load.
"""

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import datamodules.text
from helpers.forked import LIMIT_S, Forked, Outcome, llp_in, pair
from helpers.undisturbed import (
    COMPARISON,
    FIT,
    RUN,
    SHARDED,
    STEPS,
    Undisturbed,
    compare_by_forks,
    difference,
    fit_pair,
    fit_sharded,
    generate_from,
    report_of,
    rows_of_test,
    runs_of,
    scoring_of,
)
from llp.checkpoints import reading
from llp.errors import SettingError

# What may come of a fault
EQUAL = "went on, equal"
SAME = "same figures"
REFUSED = "refused by one message"
MARKED = "left out, and said"
# and what may not
WRONG, LOST, TRACEBACK, HANG, UNCLEAR = (
    "silent wrong figure",
    "lost checkpoint",
    "traceback",
    "hang",
    "unclear message",
)
BROKEN = "error of the campaign itself"
FAILURES = (WRONG, LOST, TRACEBACK, HANG, UNCLEAR, BROKEN)


class OutcomeError(Exception):
    """A fault has had a consequence that it may not have: which, and what shows it."""

    def __init__(self, kind: str, evidence: object) -> None:
        super().__init__(f"{kind}: {evidence}")
        self.kind = kind


@dataclass
class Scene:
    """A folder for one injection, its random numbers, and what must come of it."""

    folder: Path
    rng: random.Random
    undisturbed: Undisturbed
    fault: str = ""
    """What was done, in words."""

    # What `llp` does

    def llp(self, *arguments: object, prepare: Callable[[], None] = lambda: None) -> Outcome:
        return self.judged(llp_in(self.folder, *arguments, prepare=prepare))

    def judged(self, outcome: Outcome) -> Outcome:
        """An outcome that is no failure by itself."""
        if outcome.status is None:
            raise OutcomeError(HANG, outcome.said[-2000:])
        if "Traceback" in outcome.said:
            raise OutcomeError(TRACEBACK, outcome.said[-3000:])
        return outcome

    def finished(self, outcome: Outcome) -> None:
        """Require that a process came to its end."""
        if self.judged(outcome).status != 0:
            raise OutcomeError(UNCLEAR, f"it should have gone on: {outcome.said[-2000:]}")

    def refused(self, outcome: Outcome, *names: str) -> None:
        """Require one message that names one of these files or folders."""
        lines = [line for line in self.judged(outcome).err.splitlines() if "error: " in line]
        if outcome.status != 1 or len(lines) != 1 or not any(name in lines[0] for name in names):
            raise OutcomeError(UNCLEAR, f"status {outcome.status}, wanted one of {names}: {outcome.said[-2000:]}")

    # What must come of it

    def same_run(self, run: Path = RUN, saved: int = 0, left_out: str | None = None) -> None:
        """Require that a run at its end is the undisturbed one, bit for bit.

        Args:
            run: Its folder.
            saved: The step that was saved before it went on. After the last one TensorBoard's summary of the run, which
                comes with its end, is missing.
            left_out: Curves whose tags begin so are not compared.
        """
        left_out = "final/" if saved == STEPS else left_out
        found = difference(self.undisturbed.whole / run, self.folder / run, left_out)
        if found is not None:
            raise OutcomeError(WRONG, found[:2000])

    def same(self, what: str, found: object, expected: object) -> None:
        if found != expected:
            raise OutcomeError(WRONG, f"{what}: {str(found)[:1000]} in place of {str(expected)[:1000]}")

    def same_test(self) -> None:
        self.same("test", rows_of_test(self.folder / RUN), self.undisturbed.test_rows)

    def same_cache(self) -> None:
        """Require that the cache holds what is prepared where nothing happens."""
        for folder in self.undisturbed.prepared.iterdir():
            for path in folder.iterdir():
                other = self.folder / "cache" / folder.name / path.name
                if not other.is_file() or other.read_bytes() != path.read_bytes():
                    raise OutcomeError(WRONG, f"{other} is not what is prepared where nothing happens")

    def saved_step(self, run: Path = RUN) -> int:
        """The step of the newest whole checkpoint; 0: there is none."""
        path = next(reading.newest_first(self.folder / run / "checkpoints"), None)
        aside = [*(self.folder / run / "checkpoints").glob(".*.replaced")]  # what the next start restores
        steps = [torch.load(one / "meta.pt" if one.is_dir() else one)["global_step"] for one in aside]
        return max([0, *steps] if path is None else [reading.read(path)["global_step"], *steps])

    def kept(self, step: int, run: Path = RUN) -> int:
        """Require that a checkpoint of this step or a later one is there; returns the step that is."""
        now = self.saved_step(run)
        if now < step:
            raise OutcomeError(LOST, f"step {step}, then {now}")
        return now


def next_second() -> None:
    """TensorBoard tells the files of a run apart by the second in which they were begun."""
    time.sleep(1.0 - time.time() % 1.0)


# kill -9


def kill(scene: Scene) -> str:
    """Kill a run at a random moment, or as it opens or renames its n-th file; twice perhaps; then let it end."""
    command = [*FIT, "--ckpt_path", "auto"]
    step = 0
    kills = scene.rng.choice([1, 1, 2])
    for _ in range(kills):
        prepare, delay = _a_moment(scene)
        process = Forked(scene.folder, command, prepare)
        process.wait(delay)
        process.send(signal.SIGKILL)
        scene.judged(process.outcome())
        step = scene.kept(step)
        next_second()
    scene.fault = f"{kills} times kill -9, the last one with step {step} saved"
    scene.finished(scene.llp(*command))
    _no_leftovers(scene.folder / RUN)
    scene.same_run(saved=step)
    return EQUAL


def _a_moment(scene: Scene) -> tuple[Callable[[], None], float]:
    """When to kill: what is to be called in the process, and how long to wait."""
    if scene.rng.random() < 0.5:
        return lambda: None, scene.rng.uniform(0.1, 1.1) * scene.undisturbed.seconds
    number = scene.rng.randrange(1, 90)  # a run opens and renames some ninety times
    return lambda: at_file(lambda count: count == number and os.kill(os.getpid(), signal.SIGKILL)), LIMIT_S


def _no_leftovers(run: Path) -> None:
    left = [*(run / "checkpoints").glob(".*")]
    if left:
        raise OutcomeError(LOST, f"left behind: {left}")


def at_file(act: Callable[[int], object], *patterns: str) -> None:
    """Call `act` with the count, from 1, as this process opens a file to write to it, or renames one."""
    count = 0
    is_acting = False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count, is_acting
        if is_acting or event not in ("open", "os.rename"):
            return
        path, _, flags = (*arguments, 0, 0)[:3]
        writes = event == "os.rename" or (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR))
        place = str(arguments[1] if event == "os.rename" else path)
        if not writes or "/dev/" in place or not all(pattern in place for pattern in patterns):
            return
        count += 1
        is_acting = True
        act(count)
        is_acting = False

    sys.addaudithook(hook)


def kill_pair(scene: Scene) -> str:
    """Kill one or both processes of a run; the other one ends by itself; then both go on."""
    command = [*fit_pair("pair"), "--ckpt_path", "auto"]
    run = Path("lightning_logs/pair")
    processes = pair(scene.folder, command)
    processes[0].wait(scene.rng.uniform(0.1, 1.0) * scene.undisturbed.pair_seconds)
    victims = scene.rng.choice([(0,), (1,), (0, 1)])
    for rank in victims:
        processes[rank].send(signal.SIGKILL)
    if not (scene.folder / run / "run.json").exists():
        # Before training the other one waits for contact as long as torch does; what has started both ends it.
        processes[0].wait(20)
        processes[1].wait(20)
        for process in processes:
            process.send(signal.SIGKILL)
    for process in processes:
        scene.judged(process.outcome())
    step = scene.kept(0, run)
    scene.fault = f"kill -9 of rank {' and '.join(map(str, victims))}, with step {step} saved"
    next_second()
    for process in pair(scene.folder, command):
        scene.finished(process.outcome())
    _no_leftovers(scene.folder / run)
    scene.same_run(run, saved=step)
    return EQUAL


def kill_preparation(scene: Scene) -> str:
    """Kill `llp prepare` as it opens or renames its n-th file, or writes a line; then let it end."""
    shutil.rmtree(scene.folder / "cache")
    command = ["prepare", "--config", "tiny.yaml"]
    number = scene.rng.randrange(1, 12)
    outcome = llp_in(
        scene.folder,
        *command,
        prepare=lambda: at_file(lambda count: count == number and os.kill(os.getpid(), signal.SIGKILL)),
    )
    scene.judged(outcome)
    scene.fault = f"kill -9 of a preparation at its file operation {number}"
    scene.finished(scene.llp(*command))
    scene.same_cache()
    return SAME


# SIGSTOP and SIGCONT


def stop(scene: Scene) -> str:
    """Stop a run for a while, several times."""
    process = Forked(scene.folder, [*FIT, "--ckpt_path", "auto"])
    times = scene.rng.randint(1, 4)
    for _ in range(times):
        process.wait(scene.rng.uniform(0.0, 0.4) * scene.undisturbed.seconds)
        process.send(signal.SIGSTOP)
        process.wait(scene.rng.uniform(0.0, 1.0))
        process.send(signal.SIGCONT)
    scene.fault = f"stopped {times} times for less than a second"
    scene.finished(process.outcome())
    scene.same_run()
    return EQUAL


def stall(scene: Scene) -> str:
    """Stop one rank of two for longer than the stall timeout: the run ends and names it; or both: the run goes on."""
    run = Path("lightning_logs/pair")
    timeout_s = 8.0
    command = [*fit_pair("pair"), "--ckpt_path", "auto", "--stall.timeout_s", str(timeout_s)]
    stopped = scene.rng.choice([(0,), (1,), (0, 1)])
    step = scene.rng.randrange(1, 12)
    marks = [scene.folder / f"stopped-{rank}" for rank in stopped]
    processes = pair(scene.folder, command, lambda: _stop_at(step, stopped, scene.folder))
    end = time.monotonic() + LIMIT_S
    while not all(mark.exists() for mark in marks):
        if time.monotonic() > end:
            raise OutcomeError(HANG, "a rank never came to its step")
        time.sleep(0.1)
    scene.fault = f"rank {' and '.join(map(str, stopped))} stopped at step {step} for longer than stall.timeout_s"
    outcome = EQUAL
    if len(stopped) == 2:
        time.sleep(1.5 * timeout_s)
        for process in processes:
            process.send(signal.SIGCONT)
        for process in processes:
            scene.finished(process.outcome())
    else:
        other = scene.judged(processes[1 - stopped[0]].outcome())
        processes[stopped[0]].send(signal.SIGKILL)
        processes[stopped[0]].outcome()
        scene.refused(other, f"rank {stopped[0]} did not respond", f"rank {stopped[0]} made no progress")
        scene.kept(0, run)
        next_second()
        for process in pair(scene.folder, command[:-2]):
            scene.finished(process.outcome())
        outcome = REFUSED
    found = _without_stall(scene, run)
    if found is not None:
        raise OutcomeError(WRONG, found[:2000])
    return outcome


def _without_stall(scene: Scene, run: Path) -> str | None:
    """What differs between a run with another timeout and the undisturbed one, the timeout aside."""
    path = scene.folder / run / "checkpoints/last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["config"] = checkpoint["config"].replace("timeout_s: 8.0", "timeout_s: 1800.0")
    torch.save(checkpoint, path)
    return difference(scene.undisturbed.whole / run, scene.folder / run)


def _stop_at(step: int, ranks: Sequence[int], folder: Path) -> None:
    from llp.training.guards import StallGuard

    move = StallGuard._move

    def stopping(self: Any, trainer: Any, *rest: Any, **more: Any) -> None:
        rank = trainer.global_rank
        mark = folder / f"stopped-{rank}"
        if rank in ranks and trainer.global_step == step and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGSTOP)
        move(self, trainer, *rest, **more)

    StallGuard.on_train_batch_start = stopping  # type: ignore[method-assign]


# A full disk


@dataclass(frozen=True)
class Written:
    """A kind of file: who writes it, and how often."""

    command: tuple[str, ...]
    pattern: str
    most: int
    named: tuple[str, ...]


_PREPARE = ("prepare", "--config", "tiny.yaml")
_COMPARE = ("compare", "comparison.yaml")
WRITTEN = {
    "checkpoint last": Written((*FIT,), ".last.ckpt.unfinished", 6, ("last.ckpt",)),
    "checkpoint best": Written((*FIT,), ".best.ckpt.unfinished", 3, ("best.ckpt",)),
    "config.yaml": Written((*FIT,), "config.yaml", 1, ("config.yaml",)),
    "TensorBoard's file": Written((*FIT,), "events.out", 4, ("lightning_logs/run",)),
    "run.json": Written((*FIT,), "run.json", 4, ("run.json",)),
    "token file": Written(_PREPARE, ".bin", 3, ("cache_dir",)),
    "index of documents": Written(_PREPARE, ".jsonl", 3, ("cache_dir",)),
    "tokenizer": Written(_PREPARE, "tokenizer.model", 1, ("cache_dir",)),
    "about.json": Written(_PREPARE, "about.json", 1, ("cache_dir",)),
    "test.json": Written((*scoring_of(RUN),), "test.json", 1, ("test.json",)),
    "test.csv": Written((*scoring_of(RUN),), "test.csv", 1, ("test.csv",)),
    "comparison's record": Written(_COMPARE, "records/", 1, ("comparisons/tiny",)),
    "comparison's report": Written(_COMPARE, "report.md", 1, ("comparisons/tiny",)),
}


def disk_full(scene: Scene) -> str:
    """Fill the disk as a file of some kind is opened; then make room, and give the command again."""
    kind = scene.rng.choice([name for name in WRITTEN if "comparison" not in name or scene.undisturbed.has_comparison])
    written = WRITTEN[kind]
    number = scene.rng.randint(1, written.most)
    left = scene.rng.choice([0, 0, scene.rng.randrange(1, 64) << 10])
    scene.fault = f"disk full but for {left:,} bytes at the writing of {kind}, number {number}"
    with small_disk(scene.folder, "48m"):
        _disk_for(scene, written)
        fill = scene.folder / "filler"

        def act(count: int) -> None:
            if count == number:
                free = os.statvfs(scene.folder)
                with fill.open("wb") as stream:
                    os.posix_fallocate(stream.fileno(), 0, free.f_bavail * free.f_bsize - left)

        outcome = scene.llp(*written.command, prepare=lambda: _filling(act, written.pattern))
        fill.unlink(missing_ok=True)
        if outcome.status != 0:
            scene.refused(outcome, *written.named, *(("lightning_logs/run",) if written.command[0] == "fit" else ()))
        _after_disk(scene, written)
        return SAME if outcome.status == 0 else REFUSED


def _filling(act: Callable[[int], object], pattern: str) -> None:
    compare_by_forks()
    at_file(act, pattern)


def _disk_for(scene: Scene, written: Written) -> None:
    """What the command finds: of `fit` no run, of `prepare` no cache, of `compare` one record less."""
    source = scene.undisturbed.cut
    ignored = shutil.ignore_patterns("lightning_logs") if written.command[0] == "fit" else None
    shutil.copytree(source, scene.folder, ignore=ignored, dirs_exist_ok=True)
    if written.command[0] == "prepare":
        shutil.rmtree(scene.folder / "cache")
    if "records" in written.pattern:
        min((scene.folder / COMPARISON / "records").iterdir()).unlink()
    if written.command[0] == "test":
        for path in (scene.folder / RUN).glob("test.*"):
            path.unlink()


def _after_disk(scene: Scene, written: Written) -> None:
    """There is room again: the same command does what it does where nothing happens."""
    command = written.command[0]
    if command == "fit":
        try:
            steps = [reading.read(path)["global_step"] for path in (scene.folder / RUN).glob("checkpoints/*.ckpt")]
        except SettingError as error:
            raise OutcomeError(LOST, f"half a checkpoint has the place of a whole one: {error}") from error
        step = scene.kept(max(steps, default=0))
        next_second()
        scene.finished(scene.llp(*FIT, "--ckpt_path", "auto"))
        _no_leftovers(scene.folder / RUN)
        scene.same_run(saved=step)
        return
    scene.finished(scene.llp(*written.command, prepare=compare_by_forks))
    if command == "prepare":
        scene.same_cache()
    elif command == "test":
        scene.same_test()
    else:
        scene.same("report", report_of(scene.folder), scene.undisturbed.report)


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """A file system of its own in a folder."""
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def may_mount() -> bool:
    """Whether this user may mount a file system."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with small_disk(Path(folder), "64k"):
                return True
        except (OSError, subprocess.CalledProcessError):
            return False


# Damaged files


def truncate(path: Path, rng: random.Random) -> str:
    """Cut a file at a random place, often near its beginning or end."""
    size = path.stat().st_size
    near = rng.randrange(min(64, size))
    length = rng.choice([near, size - 1 - near, rng.randrange(size)])
    os.truncate(path, length)
    return f"cut from {size:,} to {length:,} bytes"


def flip(path: Path, rng: random.Random) -> str:
    """Flip one bit of a file, and neither change its size nor its date."""
    stat = path.stat()
    place, bit = rng.randrange(stat.st_size), rng.randrange(8)
    with path.open("r+b") as stream:
        stream.seek(place)
        old = stream.read(1)[0]
        stream.seek(place)
        stream.write(bytes([old ^ 1 << bit]))
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return f"bit {bit} of byte {place:,} of {stat.st_size:,} flipped"


Damage = Callable[[Path, random.Random], str]


def damaged(scene: Scene, damage: Damage) -> str:
    """Damage a file of some kind, and give the commands that read it."""
    kinds = [kind for kind in READ if kind not in _OF_PARTS or _OF_PARTS[kind] in scene.undisturbed.parts]
    kind = scene.rng.choice(kinds)
    pattern, read = READ[kind]
    path = scene.rng.choice(sorted(scene.folder.glob(pattern)))
    scene.fault = f"{path.relative_to(scene.folder)}: {damage(path, scene.rng)}"
    return read(scene, path)


def cut_file(scene: Scene) -> str:
    """A file that lost its end."""
    return damaged(scene, truncate)


def flipped_bit(scene: Scene) -> str:
    """A file with one other bit."""
    return damaged(scene, flip)


def read_last(scene: Scene, path: Path) -> str:
    """The newest checkpoint: resumed by its name, tested, and asked to generate; `auto` takes the best one instead."""
    command = scene.rng.choice(["fit", "test", "generate"])
    if command == "fit":
        outcome = scene.llp(*FIT, "--ckpt_path", "last")
        if outcome.status == 0:
            scene.same_run()
            return EQUAL
        scene.refused(outcome, path.name)
        next_second()
        scene.finished(scene.llp(*FIT, "--ckpt_path", "auto"))
        scene.same_run()
        return REFUSED
    return _tested_or_generated(scene, path, command)


def read_best(scene: Scene, path: Path) -> str:
    """The best checkpoint: tested, and asked to generate; a run goes on from its newest."""
    command = scene.rng.choice(["auto", "test", "generate"])
    if command == "auto":
        scene.finished(scene.llp(*FIT, "--ckpt_path", "auto"))
        scene.same_run()
        return EQUAL
    # The commands are given the file that is damaged; the figures expected are those of the newest one.
    shutil.move(path, path.with_name("last.ckpt"))
    return _tested_or_generated(scene, path.with_name("last.ckpt"), command, is_best=True)


def _tested_or_generated(scene: Scene, path: Path, command: str, is_best: bool = False) -> str:
    outcome = scene.llp(*(scoring_of(RUN) if command == "test" else generate_from(RUN)))
    if outcome.status != 0:
        scene.refused(outcome, path.name)
        return REFUSED
    expected = scene.undisturbed.best if is_best else (scene.undisturbed.test_rows, scene.undisturbed.text)
    if command == "test":
        scene.same("test", rows_of_test(scene.folder / RUN), expected[0])
    else:
        scene.same("text", outcome.out, expected[1])
    return SAME


def read_sharded(scene: Scene, path: Path) -> str:
    """A sharded checkpoint: resumed by both processes, or made one file of."""
    outcomes = [process.outcome() for process in pair(scene.folder, [*fit_sharded(), "--ckpt_path", "last"])]
    for outcome in outcomes:
        scene.judged(outcome)
    if all(outcome.status == 0 for outcome in outcomes):
        same = _sharded_weights(scene.folder / SHARDED), _sharded_weights(scene.undisturbed.whole / SHARDED)
        scene.same("weights", *same)
        return EQUAL
    scene.refused(outcomes[0], "last.ckpt")
    return REFUSED


def _sharded_weights(run: Path) -> str:
    from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

    with tempfile.TemporaryDirectory() as folder:
        dcp_to_torch_save(run / "checkpoints/last.ckpt", Path(folder) / "file")
        content = torch.load(Path(folder) / "file", weights_only=True)
    digest = hashlib.sha256()
    for name in sorted(content["state_dict"]):
        digest.update(f"{name} {content['state_dict'][name].tolist()}".encode())
    return digest.hexdigest()


def read_cache(scene: Scene, path: Path) -> str:
    """A file of the prepared folder: trained on, and tested; after the remedy all is as it was."""
    folder = path.parent
    command = scene.rng.choice(["fit", "test", "prepare"])
    arguments = {"fit": [*FIT, "--ckpt_path", "last"], "test": scoring_of(RUN), "prepare": [*_PREPARE]}[command]
    outcome = scene.llp(*arguments)
    is_refused = outcome.status != 0
    if is_refused:
        scene.refused(outcome, f"remove cache/{folder.name}, and the next run prepares it anew")
        shutil.rmtree(folder)
        if command == "fit":
            next_second()
        scene.finished(scene.llp(*arguments))
    if command == "prepare" and is_refused:
        scene.same_cache()  # with a checkpoint's tokenizer the folder has another name
    elif command == "fit":
        scene.same_run()
    elif command == "test":
        scene.same_test()
    return REFUSED if is_refused else SAME


def read_record(scene: Scene, path: Path) -> str:
    """A small file of a run: listed by `llp runs`, or the run goes on."""
    if scene.rng.random() < 0.25:
        scene.finished(scene.llp(*FIT, "--ckpt_path", scene.rng.choice(["last", "auto"])))
        scene.same_run()
        return EQUAL
    rows, said = runs_of(scene.folder)
    expected = scene.undisturbed.runs[0]
    if "Traceback" in said:
        raise OutcomeError(TRACEBACK, said[-2000:])
    if rows == expected:
        return SAME
    if f"Damaged: run/{path.name}" not in said:
        raise OutcomeError(WRONG if rows else UNCLEAR, said[-2000:])
    # What the damaged file says is left out: nothing in its place, or what another file says.
    left_out = {"": None, "unknown": "state", "not started": "state", path.name: "damaged"}
    whole = {row["run"]: row for row in expected}
    for row in rows:
        for name in row.keys() & expected[0].keys():
            value = row[name]
            is_left_out = row["run"] == "run" and value in left_out and left_out[value] in (None, name)
            if value != whole[row["run"]][name] and not is_left_out:
                raise OutcomeError(WRONG, f"{name} = {value} in place of {whole[row['run']][name]}")
    return MARKED


def read_events(scene: Scene, path: Path) -> str:
    """TensorBoard's file, which nothing of `llp` reads: the run goes on, and its checkpoints are equal."""
    scene.finished(scene.llp(*FIT, "--ckpt_path", "last"))
    shutil.rmtree(scene.folder / "kept", ignore_errors=True)
    for events in (scene.folder / RUN).glob("events*"):
        events.unlink()
    for events in (scene.undisturbed.whole / RUN).glob("events*"):
        shutil.copy2(events, scene.folder / RUN)
    scene.same_run()
    return EQUAL


def read_comparison(scene: Scene, path: Path) -> str:
    """A file of a comparison: its report is written again from what is there."""
    for report in (scene.folder / COMPARISON).glob("report.*"):
        report.unlink()
    outcome = scene.llp("compare", "comparison.yaml", "--report", prepare=compare_by_forks)
    if outcome.status == 0:
        scene.same("report", report_of(scene.folder), scene.undisturbed.report)
        return SAME
    scene.refused(outcome, path.name)
    path.unlink()  # the remedy
    scene.finished(scene.llp("compare", "comparison.yaml", prepare=compare_by_forks))
    scene.same("report", report_of(scene.folder), scene.undisturbed.report)
    return REFUSED


def read_stage(scene: Scene, path: Path) -> str:
    """A file of a comparison's run, whose record is to be made of it anew."""
    run = path.relative_to(scene.folder / COMPARISON / "lightning_logs").parts[0]
    (scene.folder / COMPARISON / f"records/{run}.json").unlink()
    for report in (scene.folder / COMPARISON).glob("report.*"):
        report.unlink()
    outcome = scene.llp("compare", "comparison.yaml", prepare=compare_by_forks)
    if outcome.status == 0:
        scene.same("report", report_of(scene.folder), scene.undisturbed.report)
        return SAME
    scene.refused(outcome, run)
    return REFUSED


READ: dict[str, tuple[str, Callable[[Scene, Path], str]]] = {
    "last.ckpt": ("lightning_logs/run/checkpoints/last.ckpt", read_last),
    "best.ckpt": ("lightning_logs/run/checkpoints/best.ckpt", read_best),
    "shard": ("lightning_logs/sharded/checkpoints/last.ckpt/*.distcp", read_sharded),
    "description of shards": ("lightning_logs/sharded/checkpoints/last.ckpt/[.m]*", read_sharded),
    "token file": ("cache/*/*.bin", read_cache),
    "index of documents": ("cache/*/*.jsonl", read_cache),
    "about.json": ("cache/*/about.json", read_cache),
    "tokenizer": ("cache/*/tokenizer.model", read_cache),
    "config.yaml": ("lightning_logs/run/config.yaml", read_record),
    "run.json": ("lightning_logs/run/run.json", read_record),
    "test.json": ("lightning_logs/run/test.json", read_record),
    "TensorBoard's file": ("lightning_logs/run/events*", read_events),
    "comparison's record": ("lightning_logs/comparisons/tiny/records/*.json", read_comparison),
    "comparison's run.json": ("lightning_logs/comparisons/tiny/lightning_logs/*/run.json", read_stage),
    "comparison's test.json": ("lightning_logs/comparisons/tiny/lightning_logs/*/test.json", read_stage),
}
_OF_PARTS = {
    **dict.fromkeys(("shard", "description of shards"), "sharded"),
    **dict.fromkeys(("comparison's record", "comparison's run.json", "comparison's test.json"), "comparison"),
}


# Clocks


def clock(scene: Scene) -> str:
    """File times in the past or the future, or a clock that jumps by hours while a run goes on."""
    hours = scene.rng.choice([-1, 1]) * 10 ** scene.rng.uniform(0, 5)
    if scene.rng.random() < 0.5:
        paths = [path for path in sorted(scene.folder.rglob("*")) if path.is_file()]
        chosen = scene.rng.sample(paths, len(paths) // 2)
        for path in chosen:
            moved = path.stat().st_mtime + 3600 * hours * scene.rng.random()
            os.utime(path, (moved, moved))
        scene.fault = f"{len(chosen)} files with dates up to {hours:,.0f} hours away"
        jump: Callable[[], None] = lambda: None  # noqa: E731
    else:
        number = scene.rng.randrange(0, 400)
        scene.fault = f"the clock moves by {hours:,.0f} hours at its reading {number}"
        jump = lambda: _jump(number, 3600 * hours)  # noqa: E731
    command = scene.rng.choice(["last", "auto", "test"])
    if command == "test":
        scene.finished(scene.llp(*scoring_of(RUN), prepare=jump))
        scene.same_test()
        return SAME
    started = time.monotonic()
    scene.finished(scene.llp(*FIT, "--ckpt_path", command, prepare=jump))
    # TensorBoard reads the files of a run in the order of the clock.
    scene.same_run(left_out="" if hours < 0 else None)
    seconds = json.loads((scene.folder / RUN / "run.json").read_text())["training_seconds"]
    limit = scene.undisturbed.cut_seconds + time.monotonic() - started
    if not 0 < seconds < limit:
        raise OutcomeError(WRONG, f"training_seconds = {seconds}, of {limit} at most")
    return EQUAL


def _jump(number: int, seconds: float) -> None:
    """Let this process's clock jump when it is read the n-th time."""
    now, readings = time.time, 0

    def jumping() -> float:
        nonlocal readings
        readings += 1
        return now() + (seconds if readings > number else 0.0)

    time.time = jumping


# A shared cache


def shared_cache(scene: Scene) -> str:
    """Eight processes start at once on an empty cache; some are killed."""
    shutil.rmtree(scene.folder / "cache")
    processes = [Forked(scene.folder, _PREPARE) for _ in range(7)]
    processes.append(Forked(scene.folder, FIT))
    killed = scene.rng.sample(processes[:7], scene.rng.choice([0, 0, 1, 3]))
    processes[0].wait(scene.rng.uniform(0.0, 2.0))
    for process in killed:
        process.send(signal.SIGKILL)
    scene.fault = f"eight processes on one empty cache, {len(killed)} of them killed"
    for process in processes:
        outcome = scene.judged(process.outcome())
        if process not in killed:
            scene.finished(outcome)
    scene.same_cache()
    if len([*(scene.folder / "cache").iterdir()]) != 1:
        raise OutcomeError(WRONG, f"in the cache: {[*(scene.folder / 'cache').iterdir()]}")
    scene.same_run()
    return SAME


def versions(scene: Scene) -> str:
    """Another version of the package on the same cache, or what it says in a folder that this one reads."""
    (folder,) = (scene.folder / "cache").iterdir()
    if scene.rng.random() < 0.4:
        other = scene.rng.choice([1, 2, 4, 40])
        scene.fault = f"a version with format {other} of the cache beside this one, at once"
        if scene.rng.random() < 0.5:
            shutil.rmtree(folder)
        both = [Forked(scene.folder, _PREPARE, lambda: _set_format(other)), Forked(scene.folder, scoring_of(RUN))]
        for process in both:
            scene.finished(process.outcome())
        scene.same_test()
        return SAME
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    about.pop("own_sha256")
    key = scene.rng.choice(sorted(about))
    change = scene.rng.choice(["lacks", "has another form of", "has more than"])
    if change == "lacks":
        del about[key]
    elif change == "has another form of":
        about[key] = scene.rng.choice([None, 3, [about[key]]])
    else:
        about["new"] = about[key]
    scene.fault = f"about.json of a version that {change} {key}"
    own = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()
    (folder / "about.json").write_text(json.dumps({**about, "own_sha256": own}, indent=1) + "\n")
    return read_cache(scene, folder / "about.json") if change != "has more than" else _reads_on(scene)


def _reads_on(scene: Scene) -> str:
    scene.finished(scene.llp(*scoring_of(RUN)))
    scene.same_test()
    return SAME


def _set_format(number: int) -> None:
    datamodules.text._FORMAT = number


# All of them


@dataclass(frozen=True)
class Kind:
    """A kind of fault: its name in the table, how often it comes in fifty, what it does, and what it finds."""

    title: str
    share: int
    inject: Callable[[Scene], str]
    start: str = "cut"
    """`cut`: a run that was cut short, and all that is there; `fresh`: the prepared text alone; `empty`: nothing."""
    needs: str | None = None


KINDS = {
    "kill": Kind("kill -9 of a run", 8, kill, "fresh"),
    "kill-pair": Kind("kill -9 of a rank of two, or of both", 3, kill_pair, "fresh", "pair"),
    "kill-preparation": Kind("kill -9 of a preparation", 2, kill_preparation, "fresh"),
    "stop": Kind("SIGSTOP and SIGCONT", 2, stop, "fresh"),
    "stall": Kind("SIGSTOP beyond the stall timeout", 1, stall, "fresh", "pair"),
    "disk-full": Kind("disk full", 8, disk_full, "empty", "mount"),
    "truncation": Kind("file cut short", 9, cut_file),
    "bit-flip": Kind("bit flipped in a file", 12, flipped_bit),
    "clock": Kind("clock or file dates moved", 2, clock),
    "shared-cache": Kind("cache shared by eight starting processes", 1, shared_cache, "fresh"),
    "versions": Kind("two versions on one cache", 2, versions),
}
_CYCLE = [name for name, kind in KINDS.items() for _ in range(kind.share)]
assert len(_CYCLE) == 50


def kind_of(seed: int, number: int) -> str:
    """The kind of an injection: in every fifty each has its share."""
    cycle = list(_CYCLE)
    random.Random(f"{seed}/{number // len(cycle)}").shuffle(cycle)
    return cycle[number % len(cycle)]


@dataclass(frozen=True)
class Injection:
    """An injection and its outcome; `evidence` is what shows a failure."""

    seed: int
    number: int
    kind: str
    fault: str
    outcome: str
    evidence: str = ""

    @property
    def is_failure(self) -> bool:
        return self.outcome in FAILURES


def inject(undisturbed: Undisturbed, seed: int, number: int, kind: str | None = None) -> Injection:
    """Carry out an injection in a folder of its own."""
    kind = kind or kind_of(seed, number)
    with tempfile.TemporaryDirectory(dir=undisturbed.root) as temporary:
        scene = Scene(Path(temporary) / "work", random.Random(f"{seed}/{number}/{kind}"), undisturbed)
        _set(scene, KINDS[kind].start)
        try:
            outcome, evidence = KINDS[kind].inject(scene), ""
        except OutcomeError as failed:
            outcome, evidence = failed.kind, str(failed)
        except Exception:
            outcome, evidence = BROKEN, traceback.format_exc()
    return Injection(seed, number, kind, scene.fault, outcome, evidence)


def _set(scene: Scene, start: str) -> None:
    if start == "empty":
        scene.folder.mkdir()
        return
    ignored = shutil.ignore_patterns("lightning_logs") if start == "fresh" else None
    shutil.copytree(scene.undisturbed.cut, scene.folder, ignore=ignored)


def table(injections: Sequence[Injection]) -> str:
    """Kinds, counts and outcomes in Markdown."""
    outcomes = [one for one in (EQUAL, SAME, MARKED, REFUSED, *FAILURES) if any(i.outcome == one for i in injections)]
    columns = [*outcomes, *(one for one in FAILURES if one not in outcomes and one in (WRONG, LOST, TRACEBACK))]
    lines = [f"| kind | injections | {' | '.join(columns)} |", f"| --- |{' ---: |' * (1 + len(columns))}"]
    for kind in [*KINDS, "all"]:
        own = [one for one in injections if kind in (one.kind, "all")]
        counts = [sum(one.outcome == outcome for one in own) for outcome in columns]
        if own:
            title = KINDS[kind].title if kind in KINDS else kind
            lines.append(f"| {title} | {len(own)} | {' | '.join(str(count) if count else '' for count in counts)} |")
    return "\n".join(lines)
