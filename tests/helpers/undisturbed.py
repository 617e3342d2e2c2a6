"""A small run, cut short and undamaged, and all figures that come of it where nothing happens."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import yaml

from helpers.forked import Forked, Outcome, llp_in, pair
from helpers.runs import assert_same_checkpoint, curves
from llp.checkpoints.callback import RunCheckpoint
from llp.comparison import run as comparison_run

PARTS = ("pair", "sharded", "comparison")
STEPS = 12
RUN = Path("lightning_logs/run")
COMPARISON = Path("lightning_logs/comparisons/tiny")
SHARDED = Path("lightning_logs/sharded")
FIT = ["fit", "--config", "tiny.yaml", "--name", "run"]
CONFIGURATION = {
    "model": {
        "class_path": "llp.LLP",
        "init_args": {
            **{"dim": 8, "n_layers": 1, "n_heads": 1, "segment_len": 8, "dropout": 0.1},
            **{"learning_rate": 1e-2, "schedule": "halving", "warmup_steps": 2},
        },
    },
    "data": {
        "class_path": "datamodules.TextFiles",
        "init_args": {
            "cache_dir": "cache",
            "tokenizer": {"class_path": "datamodules.SentencePiece", "init_args": {"vocab_size": 280}},
            "window_len": 32,
            "batch_size": 4,
        },
    },
    "trainer": {
        **{"accelerator": "cpu", "devices": 1, "max_steps": STEPS, "val_check_interval": 4, "log_every_n_steps": 1},
        **{"limit_val_batches": 4, "enable_progress_bar": False, "enable_model_summary": False},
    },
    "checkpoint": {"every_n_train_steps": 2},
    "sample": {"sample_tokens": 2},
}
CUT_AT = 11  # last.ckpt is of step 10, best.ckpt of step 8 or before
FSDP2 = {
    "class_path": "lightning.pytorch.strategies.ModelParallelStrategy",
    "init_args": {"data_parallel_size": "auto", "process_group_backend": "gloo", "save_distributed_checkpoint": True},
}
SPECIFICATION = {
    "name": "tiny",
    "shared": {
        "model": {"init_args": {"dim": 8, "n_layers": 1, "n_heads": 1}},
        "trainer": {"accelerator": "cpu", "devices": 1, "limit_val_batches": 2, "enable_progress_bar": False},
        "sample": {"sample_tokens": 0},
    },
    "arms": {
        "dense": {"class_path": "llp.Transformer"},
        "llp": {"class_path": "llp.LLP", "init_args": {"segment_len": 8}},
    },
    "reference": "dense",
    "steps": 4,
    "validations": 2,
    "learning_rates": [0.01],
    "extensions": 0,
    "seeds": [0, 1],
    "scoring_window_len": 32,
    "scoring_stride": 16,
    "slices": False,
    "primary": [["llp", "dense", "windows"]],
}


class Undisturbed:
    """What every injection starts from, and what must come of it.

    The text has one place for all: a prepared folder is named after it.

    Args:
        root: A folder for it.
        parts: What is made beside the run of one process.
    """

    def __init__(self, root: Path, parts: Sequence[str] = PARTS) -> None:
        self.root, self.parts = root, parts
        self.has_comparison = "comparison" in parts
        self.plain = root / "plain"
        """Text and configurations alone."""
        self.cut = root / "cut"
        """With the prepared text, a run that was killed at its eleventh step, and a test of it."""
        self.whole = root / "whole"
        """Where the run has gone on to its end."""
        self._write_plain()
        shutil.copytree(self.plain, self.cut, ignore=shutil.ignore_patterns("text"))
        _expect(llp_in(self.cut, "prepare", "--config", "tiny.yaml"))
        self.prepared = self.cut / "cache"
        started = time.monotonic()
        killed = llp_in(self.cut, *FIT, prepare=killed_at(CUT_AT))
        assert killed.status == -signal.SIGKILL, killed.said
        self.seconds = self.cut_seconds = time.monotonic() - started
        shutil.copytree(self.cut, self.whole)
        shutil.rmtree(self.whole / RUN)
        _expect(llp_in(self.whole, *FIT))
        self.best = self._scored("best")
        self.test_rows, self.text = self._scored("last")
        if "pair" in parts:
            started = time.monotonic()
            for process in pair(self.whole, fit_pair("pair")):
                _expect(process.outcome())
            self.pair_seconds = time.monotonic() - started
        if "sharded" in parts:
            self._make_sharded()
        if "comparison" in parts:
            _expect(llp_in(self.cut, "compare", "comparison.yaml", prepare=compare_by_forks))
            self.report = report_of(self.cut)
        self.runs = runs_of(self.cut)

    def _write_plain(self) -> None:
        (self.plain / "text").mkdir(parents=True)
        rng = random.Random(0)
        words = ["the", "cat", "sat", "on", "a", "mat", "Ünïcode"]
        words += ["".join(rng.choices("abcdefgh", k=4)) for _ in range(60)]
        for split, n_lines in (("train", 200), ("validation", 20), ("test", 25)):
            lines = [" ".join(rng.choices(words, k=8)) + "\n" for _ in range(n_lines)]
            (self.plain / f"text/{split}.txt").write_text("".join(lines), encoding="utf-8")
        data = CONFIGURATION["data"]
        data = {**data, "init_args": {**data["init_args"], "path": str(self.plain / "text")}}
        tiny = {**CONFIGURATION, "data": data}
        sharded = {**tiny, "trainer": {**CONFIGURATION["trainer"], "devices": 2, "strategy": FSDP2}}
        comparison = {**SPECIFICATION, "shared": {**SPECIFICATION["shared"], "data": data}}
        for name, content in (("tiny", tiny), ("sharded", sharded), ("comparison", comparison)):
            (self.plain / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")

    def _make_sharded(self) -> None:
        for process in pair(self.cut, fit_sharded(), killed_at(CUT_AT)):
            process.outcome()
        shutil.copytree(self.cut / SHARDED, self.whole / SHARDED)
        for process in pair(self.whole, [*fit_sharded(), "--ckpt_path", "last"]):
            _expect(process.outcome())

    def _scored(self, checkpoint: str) -> tuple[list[dict[str, Any]], str]:
        """The figures of a test, and a text, of one of the run's checkpoints."""
        for path in (self.cut / RUN).glob("test*"):
            path.unlink()
        _expect(llp_in(self.cut, *scoring_of(RUN, checkpoint)))
        outcome = llp_in(self.cut, *generate_from(RUN, checkpoint))
        _expect(outcome)
        return rows_of_test(self.cut / RUN), outcome.out


def _expect(outcome: Outcome) -> None:
    assert outcome.status == 0, outcome.said


def fit_pair(name: str) -> list[str]:
    """The arguments of a run of two processes."""
    return ["fit", "--config", "tiny.yaml", "--name", name, "--trainer.devices", "2", "--trainer.strategy", "ddp"]


def fit_sharded() -> list[str]:
    return ["fit", "--config", "sharded.yaml", "--name", SHARDED.name]


def scoring_of(run: Path, checkpoint: str = "last") -> list[str]:
    return ["test", "--ckpt_path", str(run / f"checkpoints/{checkpoint}.ckpt")]


def generate_from(run: Path, checkpoint: str = "last") -> list[str]:
    path = str(run / f"checkpoints/{checkpoint}.ckpt")
    return ["generate", "--ckpt_path", path, "--prompt", "the cat", "--max_tokens", "4"]


def rows_of_test(run: Path) -> list[dict[str, Any]]:
    """The figures of the last test of a run."""
    rows: list[dict[str, Any]] = json.loads((run / "test.json").read_text(encoding="utf-8"))["rows"]
    return rows


def runs_of(folder: Path) -> tuple[list[dict[str, str]], str]:
    """The table of `llp runs` as rows, and what it says; no rows if it was refused."""
    outcome = llp_in(folder, "runs", "--csv", "runs.csv")
    table = folder / "runs.csv"
    if outcome.status != 0:
        return [], outcome.said
    with table.open(encoding="utf-8", newline="") as stream:
        rows = [*csv.DictReader(stream)]
    table.unlink()
    return rows, outcome.said


def report_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / COMPARISON).glob("report.*"))}


def difference(whole: Path, run: Path, left_out: str | None = None) -> str | None:
    """What differs between a run and the undisturbed one; None: nothing. Curves whose tags begin so are left out."""
    try:
        one, other = (
            {tag: curve for tag, curve in curves(folder).items() if left_out is None or not tag.startswith(left_out)}
            for folder in (whole, run)
        )
        np.testing.assert_equal(one, other)
        assert_same_checkpoint(whole, run)
    except AssertionError as error:
        return str(error).strip() or "different"
    return None


def killed_at(step: int) -> Callable[[], None]:
    """What kills a fork as it ends a step, before its checkpoint."""

    def prepare() -> None:
        on_end = RunCheckpoint.on_train_batch_end

        def kill(self: Any, trainer: Any, *rest: Any) -> None:
            if trainer.global_step == step:
                os.kill(os.getpid(), signal.SIGKILL)
            on_end(self, trainer, *rest)

        RunCheckpoint.on_train_batch_end = kill  # type: ignore[method-assign]

    return prepare


def compare_by_forks() -> None:
    """Let a comparison fork where it would start `python -m llp`."""

    class Stage:
        """As much of a `Popen` as the workers use."""

        def __init__(self, command: list[str], **_: Any) -> None:
            self._process = Forked(Path.cwd(), command[command.index("llp") + 1 :])

        def poll(self) -> int | None:
            self._process.wait(0.2)
            return self.returncode

        @property
        def returncode(self) -> int | None:
            return self._process.poll()

        def wait(self) -> int | None:
            return self._process.outcome().status

        send_signal = property(lambda self: self._process.send)

    comparison_run.subprocess = SimpleNamespace(Popen=Stage, DEVNULL=subprocess.DEVNULL)  # type: ignore[assignment]
    comparison_run._POLL_S = 0.05
