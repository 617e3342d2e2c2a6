"""A small run, cut short and undamaged, and everything that comes of it when nothing happens."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from torch.optim.optimizer import register_optimizer_step_post_hook

from campaigns.forked import Forked, Outcome, llp_in, pair
from helpers.runs import assert_same_checkpoint, curves

STEPS, CUT_AT = 12, 11  # last.ckpt is of step 10, best.ckpt of step 8 or before
RUN, PAIR = Path("lightning_logs/run"), Path("lightning_logs/pair")
SHARDED, COMPARISON = Path("lightning_logs/sharded"), Path("lightning_logs/comparisons/tiny")
FIT = ["fit", "--config", "tiny.yaml", "--name", "run"]
FIT_PAIR = [*FIT[:-1], "pair", "--trainer.devices", "2", "--trainer.strategy", "ddp"]
FIT_SHARDED = ["fit", "--config", "tiny.yaml", "--config", "sharded.yaml", "--name", "sharded"]
TEST = ["test", "--ckpt_path", str(RUN / "checkpoints/last.ckpt")]
GENERATE = ["generate", "--prompt", "the cat", "--max_tokens", "4", *TEST[1:]]
PREPARE = ["prepare", "--config", "tiny.yaml"]
COMPARE = ["compare", "comparison.yaml"]
_CONFIGURATIONS = """
tiny:
  model:
    class_path: llp.LLP
    init_args: {dim: 8, n_layers: 1, n_heads: 1, dropout: 0.1, learning_rate: 0.01, schedule: halving, warmup_steps: 2,
      segment_len: 8}
  data: &data
    class_path: datamodules.TextFiles
    init_args: {path: TEXT, cache_dir: cache, window_len: 32, batch_size: 4,
      tokenizer: {class_path: datamodules.SentencePiece, init_args: {vocab_size: 280}}}
  trainer: {accelerator: cpu, devices: 1, max_steps: 12, val_check_interval: 4, log_every_n_steps: 1,
    limit_val_batches: 4, enable_progress_bar: false, enable_model_summary: false}
  checkpoint: {every_n_train_steps: 2}
  sample: {sample_tokens: 2}
sharded:
  trainer:
    devices: 2
    strategy:
      class_path: lightning.pytorch.strategies.ModelParallelStrategy
      init_args: {data_parallel_size: auto, process_group_backend: gloo, save_distributed_checkpoint: true}
comparison:
  name: tiny
  shared:
    model: {init_args: {dim: 8, n_layers: 1, n_heads: 1}}
    data: *data
    trainer: {accelerator: cpu, devices: 1, limit_val_batches: 2, enable_progress_bar: false}
    sample: {sample_tokens: 0}
  arms:
    dense: {class_path: llp.Transformer}
    llp: {class_path: llp.LLP, init_args: {segment_len: 8}}
  reference: dense
  steps: 4
  validations: 2
  learning_rates: [0.01]
  extensions: 0
  seeds: [0, 1]
  scoring_window_len: 32
  scoring_stride: 16
  slices: false
  primary: [[llp, dense, windows]]
"""


class Undisturbed:
    """What every injection starts from, and what must come of it.

    Args:
        root: A folder for it.
        is_quick: Leaves out what takes two processes and the comparison.

    Attributes:
        cut: A folder with the prepared text, a run that was killed at its eleventh step, and a test of it.
        whole: The same where the run has reached its end.
        seconds: How long a run takes, of one process and of two.
    """

    def __init__(self, root: Path, is_quick: bool = False) -> None:
        self.root, self.is_quick = root, is_quick
        self.cut, self.whole = root / "cut", root / "whole"
        self._write_text_and_configurations()
        _expect(llp_in(self.cut, *PREPARE))
        started = time.monotonic()
        killed = llp_in(self.cut, *FIT, prepare=lambda: at_step(CUT_AT, signal.SIGKILL))
        assert killed.status == -signal.SIGKILL, killed.said
        self.seconds = self.pair_seconds = time.monotonic() - started
        shutil.copytree(self.cut, self.whole)
        shutil.rmtree(self.whole / RUN)
        _expect(llp_in(self.whole, *FIT))
        self.best, self.text_of_best = self._scored("best.ckpt")
        self.test, self.text = self._scored("last.ckpt")
        if not is_quick:
            started = time.monotonic()
            for process in pair(self.whole, FIT_PAIR):
                _expect(process.outcome())
            self.pair_seconds = time.monotonic() - started
            for process in pair(self.cut, FIT_SHARDED, lambda: at_step(CUT_AT, signal.SIGKILL)):
                process.outcome()
            shutil.copytree(self.cut / SHARDED, self.whole / SHARDED)
            for process in pair(self.whole, [*FIT_SHARDED, "--ckpt_path", "last"]):
                _expect(process.outcome())
            _expect(llp_in(self.cut, *COMPARE, prepare=compare_by_forks))
            self.report = report_of(self.cut)
        self.runs = runs_of(self.cut)[0]

    def _write_text_and_configurations(self) -> None:
        """The text has one place for all injections, since a prepared folder is named after it."""
        (self.root / "text").mkdir()
        self.cut.mkdir()
        rng = random.Random(0)
        words = ["the", "cat", "sat", "on", "a", "mat", "Ünïcode"]
        words += ["".join(rng.choices("abcdefgh", k=4)) for _ in range(60)]
        for split, n_lines in (("train", 200), ("validation", 20), ("test", 25)):
            lines = [" ".join(rng.choices(words, k=8)) + "\n" for _ in range(n_lines)]
            (self.root / f"text/{split}.txt").write_text("".join(lines), encoding="utf-8")
        text = _CONFIGURATIONS.replace("TEXT", str(self.root / "text"))
        for name, content in yaml.safe_load(text).items():
            (self.cut / f"{name}.yaml").write_text(yaml.safe_dump(content), encoding="utf-8")

    def _scored(self, checkpoint: str) -> tuple[list[dict[str, Any]], str]:
        """The rows of a test, and a generated text, of one of the run's checkpoints."""
        for path in (self.cut / RUN).glob("test*"):
            path.unlink()
        path = str(RUN / "checkpoints" / checkpoint)
        _expect(llp_in(self.cut, *TEST[:-1], path))
        outcome = llp_in(self.cut, *GENERATE[:-1], path)
        _expect(outcome)
        return rows_of_test(self.cut), outcome.out


def _expect(outcome: Outcome) -> None:
    assert outcome.status == 0, outcome.said


def rows_of_test(folder: Path) -> list[dict[str, Any]]:
    """The metrics of the run's last test."""
    rows: list[dict[str, Any]] = json.loads((folder / RUN / "test.json").read_text(encoding="utf-8"))["rows"]
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
    """The files of the comparison's report."""
    return {path.name: path.read_bytes() for path in sorted((folder / COMPARISON).glob("report.*"))}


def difference(whole: Path, run: Path, left_out: str | None = None) -> str | None:
    """What differs between a run and the undisturbed one, or None; curves whose tags begin so are left out."""
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


def at_step(step: int, signum: int) -> None:
    """Send this process a signal within its n-th optimizer step from now on, before its checkpoint."""
    count = 0

    def send(*_: object) -> None:
        nonlocal count
        count += 1
        if count == step:
            os.kill(os.getpid(), signum)

    register_optimizer_step_post_hook(send)


def compare_by_forks() -> None:
    """Let a comparison fork where it would start `python -m llp`."""
    popen = subprocess.Popen

    class Stage:
        """As much of a `Popen` as the workers use."""

        def __new__(cls, command: list[str], **settings: Any) -> Any:
            return super().__new__(cls) if "llp" in command else popen(command, **settings)

        def __init__(self, command: list[str], **_: Any) -> None:
            self._process = Forked(Path.cwd(), command[command.index("llp") + 1 :])
            self.pid, self.send_signal = self._process.pid, self._process.send

        def poll(self) -> int | None:
            self._process.wait(0.2)
            return self.returncode

        @property
        def returncode(self) -> int | None:
            return self._process.poll()

        def wait(self) -> int | None:
            return self._process.outcome().status

    subprocess.Popen = Stage  # type: ignore[assignment, misc]
    pause = time.sleep
    time.sleep = lambda seconds: pause(min(seconds, 0.05))
