"""A small text, a folder to run in, and `llp` run in this process."""

import os
import random
import shutil
from pathlib import Path

import lightning.pytorch  # noqa: F401  its log writes to the stderr of its import, which must not be one test's
import pytest
import torch
from tensorboard.summary.writer import event_file_writer

from helpers.in_process import call

pytest.register_assert_rewrite("helpers.runs")

torch.set_num_threads(1)  # the models are too small for more

# A run and its resumption within one second differ only in the last number of their files' names, and are read in the
# order of the letters: number 100 would come before 99.
event_file_writer._global_uid = event_file_writer.AtomicCounter(1_000_000)


def write_wikitext(folder: Path) -> Path:
    """Write invented text in WikiText-103's layout."""
    folder.mkdir()
    rng = random.Random(0)
    words = ["the", "cat", "<unk>", "sat", "on", "a", "mat", "@-@", "Ünïcode", "\u2581", ",", "."]
    words += ["".join(rng.choices("abcdefgh", k=4)) for _ in range(60)]
    for split, n_lines in (("train", 300), ("valid", 16), ("test", 20)):
        lines = [" \n", " = Title = \n", " \n"]
        lines += [" " + " ".join(rng.choices(words, k=rng.randint(3, 20))) + " \n" for _ in range(n_lines)]
        (folder / f"wiki.{split}.tokens").write_text("".join(lines), encoding="utf-8", newline="")
    return folder


@pytest.fixture
def wikitext(tmp_path: Path) -> Path:
    """A folder in WikiText-103's layout with invented text."""
    return write_wikitext(tmp_path / "wikitext")


TINY = """
model:
  class_path: llp.LLP
  init_args: {dim: 16, n_layers: 2, n_heads: 2, segment_len: 8, learning_rate: 1.0e-2, schedule: halving}
data:
  class_path: datamodules.WikiText103
  init_args: {path: WIKITEXT, cache_dir: CACHE, tokenizer: datamodules.Bytes, window_len: 32, batch_size: 4}
trainer: {accelerator: cpu, max_steps: 6, val_check_interval: 4, log_every_n_steps: 1, enable_progress_bar: false,
  enable_model_summary: false, gradient_clip_val: 1.0}
sample: {sample_tokens: 4}
"""


def write_config(folder: Path, wikitext: Path) -> None:
    tiny = TINY.replace("WIKITEXT", str(wikitext)).replace("CACHE", str(folder / "cache"))
    (folder / "tiny.yaml").write_text(tiny)


@pytest.fixture
def work(tmp_path, wikitext, monkeypatch):
    """A folder to run in, with `tiny.yaml`."""
    monkeypatch.chdir(tmp_path)
    write_config(tmp_path, wikitext)
    return tmp_path


@pytest.fixture
def run(work, capsys):
    """Run `llp` in this process; returns exit status, standard output and standard error."""

    def run(*arguments):
        return call(*arguments), *capsys.readouterr()

    return run


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """A folder with a finished run, which is trained once for all tests and copied for each (`trained`)."""
    folder = tmp_path_factory.mktemp("finished")
    write_config(folder, write_wikitext(folder / "wikitext"))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert call("fit", "--config", "tiny.yaml", "--name", "run") == 0
    return folder


def moved(value, old: str, new: str):
    """A value with another folder in all of its strings."""
    if isinstance(value, str):
        return value.replace(old, new)
    if isinstance(value, dict):
        return type(value)((moved(key, old, new), moved(item, old, new)) for key, item in value.items())
    return [moved(item, old, new) for item in value] if type(value) is list else value


@pytest.fixture
def trained(finished, run, work):
    """A finished run, as if it had been trained in `work`: its folder."""
    for name in ("cache", "lightning_logs/run"):  # other tests keep runs of their own beside it
        shutil.copytree(finished / name, work / name, dirs_exist_ok=True)
    folder = work / "lightning_logs/run"
    for path in (folder / "checkpoints").glob("*.ckpt"):
        torch.save(moved(torch.load(path, weights_only=True), str(finished), str(work)), path)
    config = (folder / "config.yaml").read_text(encoding="utf-8")
    (folder / "config.yaml").write_text(moved(config, str(finished), str(work)), encoding="utf-8")
    return folder


@pytest.fixture
def cluster(tmp_path, monkeypatch):
    """Programs in place of SLURM's, which write down how they were called."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, does in (("sbatch", "echo Submitted batch job 7"), ("srun", 'shift; exec "$@"'), ("scontrol", "")):
        (programs / name).write_text(f'#!/usr/bin/env bash\necho {name} "$@" >> "{tmp_path}/calls"\n{does}\n')
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    return tmp_path / "calls"
