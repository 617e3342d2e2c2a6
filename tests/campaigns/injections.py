"""The kinds of faults, each with what must come of it."""

import os
import random
import shutil
import signal
import subprocess
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from campaigns.damage import damage
from campaigns.forked import Forked, pair
from campaigns.scene import BROKEN, EQUAL, FAILURES, LOST, REFUSED, OutcomeError, Scene, at_file, next_second
from campaigns.undisturbed import (
    COMPARE,
    COMPARISON,
    FIT,
    FIT_PAIR,
    PAIR,
    PREPARE,
    RUN,
    TEST,
    Undisturbed,
    compare_by_forks,
)
from llp.checkpoints import reading
from llp.errors import SettingError

# kill -9


def _kill_at_file(number: int) -> None:
    at_file(lambda count: count == number and os.kill(os.getpid(), signal.SIGKILL))


def kill(scene: Scene) -> str:
    """Kill a run at a random moment, or as it opens or renames its n-th file, perhaps twice; then let it finish."""
    command = [*FIT, "--ckpt_path", "auto"]
    step, kills = 0, scene.rng.choice([1, 1, 2])
    for _ in range(kills):
        if scene.rng.random() < 0.5:
            process = Forked(scene.folder, command)
            process.wait(scene.rng.uniform(0.1, 1.1) * scene.undisturbed.seconds)
            process.send(signal.SIGKILL)
        else:
            number = scene.rng.randrange(1, 90)  # a run opens and renames some ninety times
            process = Forked(scene.folder, command, lambda number=number: _kill_at_file(number))
        scene.judged(process.outcome())
        step = scene.kept(step)
        next_second()
    scene.fault = f"{kills} times kill -9, the last one with step {step} saved"
    scene.finished(scene.llp(*command))
    scene.same_run(saved=step)
    return EQUAL


def kill_pair(scene: Scene) -> str:
    """Kill one or both processes of a run; the other one ends by itself; then both resume."""
    command = [*FIT_PAIR, "--ckpt_path", "auto"]
    processes = pair(scene.folder, command)
    processes[0].wait(scene.rng.uniform(0.1, 1.0) * scene.undisturbed.pair_seconds)
    victims = scene.rng.choice([(0,), (1,), (0, 1)])
    for rank in victims:
        processes[rank].send(signal.SIGKILL)
    if not (scene.folder / PAIR / "run.json").exists():
        # Before training, the other one waits for contact as long as torch does; whatever started both ends it.
        for process in processes:
            process.wait(20)
        for process in processes:
            process.send(signal.SIGKILL)
    for process in processes:
        scene.judged(process.outcome())
    step = scene.kept(0, PAIR)
    scene.fault = f"kill -9 of rank {' and '.join(map(str, victims))}, with step {step} saved"
    next_second()
    for process in pair(scene.folder, command):
        scene.finished(process.outcome())
    scene.same_run(PAIR, saved=step)
    return EQUAL


def preparation(scene: Scene) -> str:
    """One to eight processes start at once on an empty cache; some are killed as they open or rename a file."""
    shutil.rmtree(scene.folder / "cache")
    n_processes = scene.rng.choice([1, 2, 8])
    n_killed = scene.rng.randint(0, n_processes)
    numbers = [scene.rng.randrange(1, 12) for _ in range(n_killed)]
    killed = [Forked(scene.folder, PREPARE, lambda number=number: _kill_at_file(number)) for number in numbers]
    others = [Forked(scene.folder, PREPARE) for _ in range(n_processes - n_killed)]
    scene.fault = f"{n_processes} processes on one empty cache, {n_killed} of them killed at files {numbers}"
    for process in killed:
        scene.judged(process.outcome())
    for process in others:
        scene.finished(process.outcome())
    scene.finished(scene.llp(*FIT))
    scene.same_cache()
    scene.same_run()
    return EQUAL


# A full disk

WRITTEN: dict[str, tuple[list[str], int, str]] = {
    ".last.ckpt.unfinished": (FIT, 6, "last.ckpt"),
    ".best.ckpt.unfinished": (FIT, 3, "best.ckpt"),
    "config.yaml": (FIT, 1, "config.yaml"),
    "events.out": (FIT, 4, "lightning_logs/run"),
    "run.json": (FIT, 4, "run.json"),
    ".bin": (PREPARE, 3, "cache_dir"),
    ".jsonl": (PREPARE, 3, "cache_dir"),
    "tokenizer.model": (PREPARE, 1, "cache_dir"),
    "about.json": (PREPARE, 1, "cache_dir"),
    "test.json": (TEST, 1, "test.json"),
    "test.csv": (TEST, 1, "test.csv"),
    "records/": (COMPARE, 1, "comparisons/tiny"),
    "report.md": (COMPARE, 1, "comparisons/tiny"),
}
"""By a part of a file's path: the command that writes it, how often at most, and what a message names."""


def disk_full(scene: Scene) -> str:
    """Fill the disk as a file of some kind is opened; then make room, and run the command again."""
    pattern = scene.rng.choice([one for one in WRITTEN if not scene.undisturbed.is_quick or WRITTEN[one][0] != COMPARE])
    command, most, name = WRITTEN[pattern]
    number = scene.rng.randint(1, most)
    left = scene.rng.choice([0, 0, scene.rng.randrange(1, 64) << 10])
    scene.fault = f"disk full but for {left:,} bytes at the writing of {pattern}, number {number}"
    with small_disk(scene.folder):
        ignored = shutil.ignore_patterns("lightning_logs") if command is FIT else None
        shutil.copytree(scene.undisturbed.cut, scene.folder, ignore=ignored, dirs_exist_ok=True)
        if command is PREPARE:
            shutil.rmtree(scene.folder / "cache")
        if pattern == "records/":
            min((scene.folder / COMPARISON / "records").iterdir()).unlink()
        filler = scene.folder / "filler"

        def fill(count: int) -> None:
            if count == number:
                free = os.statvfs(scene.folder)
                with filler.open("wb") as stream:
                    os.posix_fallocate(stream.fileno(), 0, free.f_bavail * free.f_bsize - left)

        def prepare() -> None:
            compare_by_forks()
            at_file(fill, pattern)

        outcome = scene.llp(*command, prepare=prepare)
        filler.unlink(missing_ok=True)
        if outcome.status != 0:
            scene.refused(outcome, name, *(["lightning_logs/run"] if command is FIT else []))
        there_is_room_again(scene, command)
        return EQUAL if outcome.status == 0 else REFUSED


def there_is_room_again(scene: Scene, command: list[str]) -> None:
    """The same command does what it does when nothing happens."""
    if command is FIT:
        try:
            steps = [reading.read(path)["global_step"] for path in (scene.folder / RUN).glob("checkpoints/*.ckpt")]
        except SettingError as error:
            raise OutcomeError(LOST, f"half a checkpoint has the place of a whole one: {error}") from error
        step = scene.kept(max(steps, default=0))
        next_second()
        scene.finished(scene.llp(*FIT, "--ckpt_path", "auto"))
        scene.same_run(saved=step)
        return
    scene.finished(scene.llp(*command, prepare=compare_by_forks))
    if command is PREPARE:
        scene.same_cache()
    elif command is TEST:
        scene.same_test()
    else:
        scene.same_report()


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of its own in a folder."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(folder)], check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def may_mount() -> bool:
    """Whether this user may mount a file system."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with small_disk(Path(folder)):
                return True
        except (OSError, subprocess.CalledProcessError):
            return False


# All of them


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    Attributes:
        share: How often it comes in fifty injections.
        inject: What does it, and returns what came of it.
        start: `cut` for a run that was cut short and all else, `fresh` for the prepared text alone, `empty`.
        is_quick: Whether it takes one process alone.
    """

    share: int
    inject: Callable[[Scene], str]
    start: str = "cut"
    is_quick: bool = True


KINDS = {
    "kill": Kind(10, kill, "fresh"),
    "kill-pair": Kind(4, kill_pair, "fresh", is_quick=False),
    "preparation": Kind(3, preparation, "fresh"),
    "disk-full": Kind(9, disk_full, "empty"),
    "damage": Kind(24, damage),
}


def kind_of(seed: int, number: int) -> str:
    """The kind of an injection: each has its share of every fifty."""
    cycle = [name for name, kind in KINDS.items() for _ in range(kind.share)]
    random.Random(f"{seed}/{number // len(cycle)}").shuffle(cycle)
    return cycle[number % len(cycle)]


@dataclass(frozen=True)
class Injection:
    """An injection and its outcome; `evidence` shows a failure."""

    number: int
    kind: str
    fault: str
    outcome: str
    evidence: str = ""

    @property
    def is_failure(self) -> bool:
        return self.outcome in FAILURES


def inject(undisturbed: Undisturbed, seed: int, number: int) -> Injection:
    """Carry out an injection in a folder of its own; it depends on the seed and its number alone."""
    kind = kind_of(seed, number)
    with tempfile.TemporaryDirectory(dir=undisturbed.root) as temporary:
        scene = Scene(Path(temporary) / "work", random.Random(f"{seed}/{number}/{kind}"), undisturbed)
        if KINDS[kind].start == "empty":
            scene.folder.mkdir()
        else:
            ignored = shutil.ignore_patterns("lightning_logs") if KINDS[kind].start == "fresh" else None
            shutil.copytree(undisturbed.cut, scene.folder, ignore=ignored)
        try:
            outcome, evidence = KINDS[kind].inject(scene), ""
        except OutcomeError as failed:
            outcome, evidence = failed.kind, str(failed)
        except Exception:
            outcome, evidence = BROKEN, traceback.format_exc()
    return Injection(number, kind, scene.fault, outcome, evidence)
