"""Files that are cut short, or have one bit flipped: what reads them is right, or refuses them by name."""

import os
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from campaigns.forked import pair
from campaigns.scene import EQUAL, MARKED, REFUSED, TRACEBACK, UNCLEAR, WRONG, OutcomeError, Scene, next_second
from campaigns.undisturbed import (
    COMPARE,
    COMPARISON,
    FIT,
    FIT_SHARDED,
    GENERATE,
    PREPARE,
    RUN,
    SHARDED,
    TEST,
    compare_by_forks,
    rows_of_test,
    runs_of,
)


def truncate(path: Path, rng: random.Random) -> str:
    """Cut a file at a random place, often near its beginning or its end."""
    size = path.stat().st_size
    near = rng.randrange(min(64, size))
    length = rng.choice([near, size - 1 - near, rng.randrange(size)])
    os.truncate(path, length)
    return f"cut from {size:,} to {length:,} bytes"


def flip(path: Path, rng: random.Random) -> str:
    """Flip one bit of a file, and change neither its size nor its date."""
    stat = path.stat()
    place, bit = rng.randrange(stat.st_size), rng.randrange(8)
    content = bytearray(path.read_bytes())
    content[place] ^= 1 << bit
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return f"bit {bit} of byte {place:,} of {stat.st_size:,} flipped"


def damage(scene: Scene) -> str:
    """Damage a file of some kind, and run a command that reads it."""
    patterns = [pattern for pattern in READERS if not scene.undisturbed.is_quick or pattern not in _FULL]
    pattern = scene.rng.choice(patterns)
    path = scene.rng.choice(sorted(scene.folder.glob(pattern)))
    done = scene.rng.choice([truncate, flip, flip])(path, scene.rng)
    scene.fault = f"{path.relative_to(scene.folder)}: {done}"
    return READERS[pattern](scene, path)


def _read_last(scene: Scene, path: Path) -> str:
    """The newest checkpoint: resumed, tested or asked to generate; `auto` takes the best one instead."""
    if scene.rng.random() < 0.6:
        return _tested_or_generated(scene, path, scene.undisturbed.test, scene.undisturbed.text)
    outcome = scene.llp(*FIT, "--ckpt_path", "last")
    if outcome.status != 0:
        scene.refused(outcome, path.name)
        next_second()
        scene.finished(scene.llp(*FIT, "--ckpt_path", "auto"))
    scene.same_run()
    return EQUAL if outcome.status == 0 else REFUSED


def _read_best(scene: Scene, path: Path) -> str:
    """The best checkpoint: tested or asked to generate; a run resumes from its newest."""
    if scene.rng.random() < 0.3:
        scene.finished(scene.llp(*FIT, "--ckpt_path", "auto"))
        scene.same_run()
        return EQUAL
    last = shutil.move(path, path.with_name("last.ckpt"))  # which the commands name
    return _tested_or_generated(scene, last, scene.undisturbed.test_of_best, scene.undisturbed.text_of_best)


def _tested_or_generated(scene: Scene, path: Path, rows: list[dict[str, Any]], text: str) -> str:
    is_test = scene.rng.random() < 0.5
    outcome = scene.llp(*(TEST if is_test else GENERATE))
    if outcome.status != 0:
        scene.refused(outcome, path.name)
        return REFUSED
    scene.same("test", rows_of_test(scene.folder), rows) if is_test else scene.same("text", outcome.out, text)
    return EQUAL


def _read_sharded(scene: Scene, path: Path) -> str:
    """A sharded checkpoint: resumed by both processes."""
    outcomes = [process.outcome() for process in pair(scene.folder, [*FIT_SHARDED, "--ckpt_path", "last"])]
    for outcome in outcomes:
        scene.judged(outcome)
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


def read_cache(scene: Scene, path: Path) -> str:
    """A file of the prepared text: trained on, tested or prepared; after the remedy everything is as it was."""
    arguments, check = scene.rng.choice(
        [([*FIT, "--ckpt_path", "last"], scene.same_run), (TEST, scene.same_test), (PREPARE, lambda: None)]
    )
    outcome = scene.llp(*arguments)
    if outcome.status != 0:
        scene.refused(outcome, f"remove cache/{path.parent.name}, and the next run prepares it anew")
        shutil.rmtree(path.parent)
        next_second()
        scene.finished(scene.llp(*arguments))
        if arguments is PREPARE:  # with a checkpoint's tokenizer the folder has another name
            scene.same_cache()
    check()
    return EQUAL if outcome.status == 0 else REFUSED


def _read_record(scene: Scene, path: Path) -> str:
    """A small file of a run: listed by `llp runs`, or the run is resumed."""
    if scene.rng.random() < 0.25:
        scene.finished(scene.llp(*FIT, "--ckpt_path", scene.rng.choice(["last", "auto"])))
        scene.same_run()
        return EQUAL
    rows, said = runs_of(scene.folder)
    if "Traceback" in said:
        raise OutcomeError(TRACEBACK, said[-2000:])
    if rows == scene.undisturbed.runs:
        return EQUAL
    if f"Damaged: run/{path.name}" not in said:
        raise OutcomeError(WRONG if rows else UNCLEAR, said[-2000:])
    expected = {row["run"]: row for row in scene.undisturbed.runs}
    for row in rows:
        for name in row.keys() & expected[row["run"]].keys():
            # What the damaged file would say is left out.
            is_left_out = row["run"] == "run" and row[name] in ("", "unknown", "not started", path.name)
            if not is_left_out:
                scene.same(f"{name} of {row['run']}", row[name], expected[row["run"]][name])
    return MARKED


def _read_events(scene: Scene, path: Path) -> str:
    """TensorBoard's file, which no command reads: the run is resumed, and its checkpoints are equal."""
    scene.finished(scene.llp(*FIT, "--ckpt_path", "last"))
    for events in (scene.folder / RUN).glob("events*"):
        events.unlink()
    for events in (scene.undisturbed.whole / RUN).glob("events*"):
        shutil.copy2(events, scene.folder / RUN)
    scene.same_run()
    return EQUAL


def _read_comparison(scene: Scene, path: Path) -> str:
    """A record of a comparison, or what a record is made from: the report is written again, or the file is named."""
    is_record = path.parent.name == "records"
    run = path.stem if is_record else path.relative_to(scene.folder / COMPARISON / "lightning_logs").parts[0]
    for report in (scene.folder / COMPARISON).glob("report.*"):
        report.unlink()
    if not is_record:
        (scene.folder / COMPARISON / f"records/{run}.json").unlink()
    outcome = scene.llp(*COMPARE, *(["--report"] if is_record else []), prepare=compare_by_forks)
    if outcome.status != 0:
        scene.refused(outcome, run)
        if not is_record:
            return REFUSED
        path.unlink()  # the remedy
        scene.finished(scene.llp(*COMPARE, prepare=compare_by_forks))
    scene.same_report()
    return EQUAL if outcome.status == 0 else REFUSED


_FULL: dict[str, Callable[[Scene, Path], str]] = {
    "lightning_logs/sharded/checkpoints/last.ckpt/*.distcp": _read_sharded,
    "lightning_logs/sharded/checkpoints/last.ckpt/[.m]*": _read_sharded,
    "lightning_logs/comparisons/tiny/records/*.json": _read_comparison,
    "lightning_logs/comparisons/tiny/lightning_logs/*/run.json": _read_comparison,
    "lightning_logs/comparisons/tiny/lightning_logs/*/test.json": _read_comparison,
}
READERS: dict[str, Callable[[Scene, Path], str]] = {
    "lightning_logs/run/checkpoints/last.ckpt": _read_last,
    "lightning_logs/run/checkpoints/best.ckpt": _read_best,
    "cache/*/*.bin": read_cache,
    "cache/*/*.jsonl": read_cache,
    "cache/*/about.json": read_cache,
    "cache/*/tokenizer.model": read_cache,
    "lightning_logs/run/config.yaml": _read_record,
    "lightning_logs/run/run.json": _read_record,
    "lightning_logs/run/test.json": _read_record,
    "lightning_logs/run/events*": _read_events,
    **_FULL,
}
"""What reads a file, by its path."""
