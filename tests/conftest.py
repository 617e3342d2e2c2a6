"""A small text, a folder to run in, and `llp` run in this process."""

import random
import signal
import sys
from pathlib import Path

import lightning.pytorch  # noqa: F401  its log writes to the stderr of its import, which must not be one test's
import pytest
import torch
from tensorboard.summary.writer import event_file_writer

from helpers.signal_handlers import handlers_restored
from llp import __main__ as console

pytest.register_assert_rewrite("helpers.runs")

torch.set_num_threads(1)  # the models are too small for more

# A run and its resumption within one second differ only in the last number of their files' names, and are read in the
# order of the letters: number 100 would come before 99.
event_file_writer._global_uid = event_file_writer.AtomicCounter(1_000_000)


@pytest.fixture
def wikitext(tmp_path: Path) -> Path:
    """A folder in WikiText-103's layout with invented text."""
    folder = tmp_path / "wikitext"
    folder.mkdir()
    rng = random.Random(0)
    words = ["the", "cat", "<unk>", "sat", "on", "a", "mat", "@-@", "Ünïcode", "\u2581", ",", "."]
    words += ["".join(rng.choices("abcdefgh", k=4)) for _ in range(60)]
    for split, n_lines in (("train", 300), ("valid", 40), ("test", 50)):
        lines = [" \n", " = Title = \n", " \n"]
        lines += [" " + " ".join(rng.choices(words, k=rng.randint(3, 20))) + " \n" for _ in range(n_lines)]
        (folder / f"wiki.{split}.tokens").write_text("".join(lines), encoding="utf-8", newline="")
    return folder


TINY = """
model:
  class_path: llp.LLP
  init_args: {dim: 16, n_layers: 2, n_heads: 2, segment_len: 8, learning_rate: 1.0e-2, schedule: halving}
data:
  class_path: datamodules.WikiText103
  init_args: {path: WIKITEXT, cache_dir: CACHE, tokenizer: datamodules.Bytes, window_len: 32, batch_size: 4}
trainer: {accelerator: cpu, max_steps: 6, val_check_interval: 4, log_every_n_steps: 1, enable_progress_bar: false,
  enable_model_summary: false, gradient_clip_val: 1.0}
"""


@pytest.fixture
def work(tmp_path, wikitext, monkeypatch):
    """A folder to run in, with `tiny.yaml`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(
        TINY.replace("WIKITEXT", str(wikitext)).replace("CACHE", str(tmp_path / "cache"))
    )
    return tmp_path


@pytest.fixture
def run(work, monkeypatch, capsys):
    """Run `llp` in this process; returns exit status, standard output and standard error."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["llp", *map(str, arguments)])
        with handlers_restored():
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests themselves may run under nohup
            try:
                status = console.main()
            except SystemExit as stop:
                status = stop.code
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def trained(run, work):
    """A finished run: its folder."""
    status, _, err = run("fit", "--config", "tiny.yaml", "--name", "run")
    assert status == 0, err
    return work / "lightning_logs/run"
