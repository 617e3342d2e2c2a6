"""The fuzzers of `tests/fuzz.py`, a few examples each; and that they see what is wrong."""

import os
import re
import signal
import sys
from pathlib import Path

import pytest
import torch

import fuzz
from helpers.random_files import Executes
from helpers.random_settings import DATA, MODELS, Configuration, general_settings, small
from helpers.trials import try_llp
from llp.checkpoints import reading


@pytest.fixture(scope="module")
def root():
    with fuzz.workplace() as root:
        yield root


@pytest.mark.parametrize(
    ("fuzzer", "n_examples"), [(fuzz.fuzz_configurations, 30), (fuzz.fuzz_flags, 25), (fuzz.fuzz_files, 25)]
)
def test_each_example_runs_or_is_refused_by_one_message(root, fuzzer, n_examples):
    tally = fuzzer(root, n_examples, 0)
    assert tally.failures == {}, fuzz.report(tally)
    assert sum(tally.kinds.values()) == n_examples
    assert tally.kinds["ran"] > 0
    assert tally.kinds["refused"] > 0


@pytest.mark.parametrize("model", MODELS)
def test_the_small_configurations_train(root, model):
    """Else what is changed in them would prove nothing. Each architecture on one of the data sets."""
    names = [name for name in DATA if name != "datamodules.PythonSource"]  # whose text is long
    data = names[list(MODELS).index(model) % len(names)]
    outcome = try_llp(Configuration(small(model, data), [], {}).write(fuzz.empty_trial(root)), root / "trial", root)
    assert (outcome.kind, outcome.steps) == ("ran", 1), outcome.err


def test_the_schema_is_the_parser_s():
    names = {setting.name for setting in general_settings()}
    assert {"trainer.max_steps", "checkpoint.save_top_k", "guard.max_skipped_steps", "seed_everything"} <= names


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (lambda: 1 / 0, "wrong: traceback, ZeroDivisionError in commands/test_fuzz.py"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "wrong: SIGSEGV"),
        (signal.pause, "wrong: no end"),
        (lambda: bytearray(1 << 40), "refused"),  # as where there is less memory
        (lambda: Path("../elsewhere").touch(), "wrong: files outside of its folder"),
        (lambda: print("llp: error: more", file=sys.stderr), "wrong: status 1 with 2 messages"),
    ],
)
def test_faults_are_seen(root, monkeypatch, fault, kind):
    monkeypatch.setattr("helpers.trials.STILL_S", 3)
    monkeypatch.setattr("datamodules.text.TextDataModule.prepare_data", lambda self: fault())
    configuration = Configuration(small("llp.LLP", "datamodules.TextFiles"), ["--data.init_args.window_len=10000"], {})
    outcome = try_llp(configuration.write(fuzz.empty_trial(root)), root / "trial", root)
    (root / "elsewhere").unlink(missing_ok=True)
    assert re.match(kind, outcome.kind), outcome.kind


def test_a_pickle_that_would_run_code_is_seen(root, monkeypatch):
    """Were checkpoints loaded with `weights_only=False`."""
    trial = fuzz.empty_trial(root)
    torch.save({"more": Executes()}, trial / "x.ckpt")
    words = ["generate", "--ckpt_path", "x.ckpt"]
    assert try_llp(words, trial, root).kind == "refused"
    assert not (root / "executed").exists()
    monkeypatch.setattr(reading, "_load", lambda path: torch.load(path, weights_only=False))
    assert try_llp(words, trial, root).kind == "wrong: files outside of its folder"
    (root / "executed").unlink()
