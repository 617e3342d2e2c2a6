"""Files that are cut short, or have one bit flipped: what reads them is right, or refuses them by name."""

import os
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from campaigns import undisturbed as commands
from campaigns.forked import Outcome, pair
from campaigns.scene import EQUAL, MARKED, REFUSED, TRACEBACK, UNCLEAR, WRONG, OutcomeError, Scene, next_second
from campaigns.undisturbed import COMPARE, COMPARISON, PREPARE, RUN, SHARDED, compare_by_forks, rows_of_test, runs_of


def truncate(path: Path, rng: random.Random) -> str:
    """Cut a file at a random place, often near its beginning or its end."""
    size = path.stat().st_size
    near = rng.randrange(min(64, size))
    length = rng.choice([near, size - 1 - near, rng.randrange(size)])
    os.truncate(path, length)
    return f"cut from {size:,} to {length:,} bytes"


def flip(path: Path, rng: random.Random) -> str:
    """Flip one bit of a file, and change neither its size nor its date."""
    return _flip_at(path, rng.randrange(path.stat().st_size), rng.randrange(8))


def flip_weight(path: Path, rng: random.Random) -> str:
    """Flip an exponent bit of one of a checkpoint's weights; any bit of another file.

    Few other bytes of a checkpoint decide what a model computes, so that random ones would hardly test the checksums.
    Weights of the layers serve every token.
    """
    if path.suffix != ".ckpt":
        return flip(path, rng)
    weights = torch.load(path, weights_only=True)["state_dict"]
    name = rng.choice([name for name, weight in weights.items() if "layers" in name and weight.ndim == 2])
    weight = weights[name].numpy()
    first = path.read_bytes().index(weight.tobytes())
    place = first + weight.itemsize * rng.randrange(weight.size) + weight.itemsize - 1  # little-endian
    return f"{_flip_at(path, place, rng.randrange(6))}, in {name}"


def _flip_at(path: Path, place: int, bit: int) -> str:
    stat = path.stat()
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return f"bit {bit} of byte {place:,} of {stat.st_size:,} flipped"


class Read(NamedTuple):
    """A command that reads a file.

    Attributes:
        command: The arguments of `llp`.
        check: Requires that the result of the command is the undisturbed one.
        may_refuse: Whether the command may be refused by one message that names the file.
        remedy: What the message says, done before `then`.
        then: The command that must succeed after a refusal.
    """

    command: list[str]
    check: Callable[[Scene, Outcome], None]
    may_refuse: bool = True
    remedy: Callable[[Path], object] = lambda path: None
    then: list[str] | None = None


def damage(scene: Scene) -> str:
    """Damage a file of some kind, and run a command that reads it."""
    patterns = [one for one in READERS if not (scene.undisturbed.is_quick and ("sharded" in one or "tiny" in one))]
    path = scene.rng.choice(sorted(scene.folder.glob(pattern := scene.rng.choice(patterns))))
    done = scene.rng.choice([truncate, flip, flip_weight, flip_weight])(path, scene.rng)
    scene.fault = f"{path.relative_to(scene.folder)}: {done}"
    read = scene.rng.choice(READERS[pattern])
    if not isinstance(read, Read):
        return read(scene, path)
    if "tiny" in pattern:
        for report in (scene.folder / COMPARISON).glob("report.*"):
            report.unlink()
        if path.parent.name != "records":  # the record is made from it
            (scene.folder / COMPARISON / f"records/{path.parent.name}.json").unlink()
    outcome = scene.llp(*read.command, prepare=compare_by_forks)
    if outcome.status == 0:
        read.check(scene, outcome)
        return EQUAL
    if not read.may_refuse:
        scene.finished(outcome)
    scene.refused(outcome, path.name if path.parent.name in ("checkpoints", "records") else path.parent.name)
    if read.then is not None:
        read.remedy(path)
        next_second()
        after = scene.llp(*read.then, prepare=compare_by_forks)
        scene.finished(after)
        read.check(scene, after)
        if read.then is PREPARE:  # with a checkpoint's tokenizer the folder has another name
            scene.same_cache()
    return REFUSED


def _list_runs(scene: Scene, path: Path) -> str:
    """`llp runs` leaves out what a damaged file would say, and names it."""
    rows, said = runs_of(scene.folder)
    if "Traceback" in said:
        raise OutcomeError(TRACEBACK, said[-2000:])
    if rows == scene.undisturbed.runs:
        return EQUAL
    if f"Damaged: run/{path.name}" not in said:
        raise OutcomeError(WRONG if rows else UNCLEAR, said[-2000:])
    expected = {row["run"]: row for row in scene.undisturbed.runs}
    for row in rows:
        # Which settings differ, and by which short names, depends on all rows together.
        for name in sorted(name for name in row.keys() & expected[row["run"]].keys() if "settings." not in name):
            is_left_out = row["run"] == "run" and row[name] in ("", "unknown", "not started", path.name)
            if not is_left_out:
                scene.same(f"{name} of {row['run']}", row[name], expected[row["run"]][name])
    return MARKED


def _resume_sharded(scene: Scene, path: Path) -> str:
    """Both processes resume from a sharded checkpoint."""
    command = [*commands.FIT_SHARDED, "--ckpt_path", "last"]
    outcomes = [scene.judged(process.outcome()) for process in pair(scene.folder, command)]
    if any(outcome.status != 0 for outcome in outcomes):
        scene.refused(outcomes[0], "last.ckpt")
        return REFUSED
    expected, found = (_weights(folder / SHARDED) for folder in (scene.undisturbed.whole, scene.folder))
    scene.same("weights", found, expected)
    return EQUAL


def _weights(run: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        dcp_to_torch_save(run / "checkpoints/last.ckpt", Path(folder) / "file")
        weights = torch.load(Path(folder) / "file", weights_only=True)["state_dict"]
    return {name: weight.tolist() for name, weight in weights.items()}


def _same_run(scene: Scene, _: Outcome) -> None:
    scene.same_run()


def _same_run_but_events(scene: Scene, _: Outcome) -> None:
    for events in (scene.folder / RUN).glob("events*"):
        events.unlink()
    for events in (scene.undisturbed.whole / RUN).glob("events*"):
        shutil.copy2(events, scene.folder / RUN)
    scene.same_run()


def _same_report(scene: Scene, _: Outcome) -> None:
    scene.same_report()


_BEST = str(RUN / "checkpoints/best.ckpt")
_LAST, _AUTO = ([*commands.FIT, "--ckpt_path", which] for which in ("last", "auto"))
_TEST, _GENERATE = commands.TEST, commands.GENERATE
_OF_LAST = [
    Read(_LAST, _same_run, then=_AUTO),
    Read(_TEST, lambda scene, _: scene.same_test()),
    Read(_GENERATE, lambda scene, outcome: scene.same("text", outcome.out, scene.undisturbed.text)),
]
_OF_BEST = [
    Read(_AUTO, _same_run, may_refuse=False),
    Read([*_TEST[:-1], _BEST], lambda scene, _: scene.same("test", rows_of_test(scene.folder), scene.undisturbed.best)),
    Read(
        [*_GENERATE[:-1], _BEST], lambda scene, outcome: scene.same("text", outcome.out, scene.undisturbed.text_of_best)
    ),
]
_OF_CACHE = [
    Read(command, check, remedy=lambda path: shutil.rmtree(path.parent), then=command)
    for command, check in (
        (_LAST, _same_run),
        (_TEST, lambda scene, _: scene.same_test()),
        (PREPARE, lambda scene, _: None),
    )
]
_RESUMED = [Read(command, _same_run, may_refuse=False) for command in (_LAST, _AUTO)]
READERS: dict[str, list[Read | Callable[[Scene, Path], str]]] = {
    "lightning_logs/run/checkpoints/last.ckpt": [*_OF_LAST],
    "lightning_logs/run/checkpoints/best.ckpt": [*_OF_BEST],
    **{f"cache/*/{name}": [*_OF_CACHE] for name in ("*.bin", "*.jsonl", "about.json", "tokenizer.model")},
    **{f"{RUN}/{name}": [_list_runs, _list_runs, *_RESUMED] for name in ("run.json", "test.json")},
    f"{RUN}/config.yaml": [*_RESUMED],
    "lightning_logs/run/events*": [Read(_LAST, _same_run_but_events, may_refuse=False)],
    "lightning_logs/sharded/checkpoints/last.ckpt/*.distcp": [_resume_sharded],
    "lightning_logs/sharded/checkpoints/last.ckpt/[.m]*": [_resume_sharded],
    f"{COMPARISON}/records/*.json": [Read([*COMPARE, "--report"], _same_report, remedy=Path.unlink, then=COMPARE)],
    f"{COMPARISON}/lightning_logs/*/run.json": [Read(COMPARE, _same_report)],
    f"{COMPARISON}/lightning_logs/*/test.json": [Read(COMPARE, _same_report)],
}
"""By the path of a file: what reads it."""
