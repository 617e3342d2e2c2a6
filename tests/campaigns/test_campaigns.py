"""A few examples of the campaigns with fixed seeds; and that the campaigns notice what is wrong."""

import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from campaigns import fuzz, injections, scene, trials, undisturbed
from campaigns.forked import Outcome
from campaigns.random_configurations import Configuration, small


@pytest.fixture(scope="module")
def root():
    with fuzz.workplace() as root:
        yield root


def try_small(root, flags):
    folder = fuzz.empty_trial(root)
    return trials.try_llp(Configuration(small("llp.LLP", "datamodules.TextFiles"), flags).write(folder), folder, root)


def test_each_example_runs_or_ends_without_harm(root):
    tally = fuzz.fuzz(root, 10, 0)
    assert tally.failures == {}, str(tally)
    assert tally.kinds.total() == 10
    assert tally.kinds["ran"] > 0
    assert tally.kinds["refused"] > 0


def say_loss_and_fail():
    print("loss 3.14")
    raise ZeroDivisionError


def write_and_fail():
    Path("half").write_text("a")
    raise ZeroDivisionError


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (lambda: 1 / 0, "traceback"),
        (
            say_loss_and_fail,
            "wrong: traceback after files or metrics, ZeroDivisionError in campaigns/test_campaigns.py",
        ),
        (write_and_fail, "wrong: traceback after files or metrics, ZeroDivisionError"),
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "wrong: SIGSEGV"),
        (signal.pause, "wrong: no end"),
        (lambda: bytearray(1 << 40), "refused"),  # as where there is less memory
        (lambda: Path("../elsewhere").touch(), "wrong: files outside of its folder"),
        (lambda: sys.exit(3), "wrong: status 3 without a message"),
    ],
)
def test_the_fuzzer_sees_faults(root, monkeypatch, fault, kind):
    monkeypatch.setattr(trials, "WALL_S", 3 if fault is signal.pause else 120)
    monkeypatch.setattr("datamodules.text.TextDataModule.prepare_data", lambda self: fault())
    trial = try_small(root, flags=["--data.init_args.window_len=10000"])
    (root / "elsewhere").unlink(missing_ok=True)
    assert trial.kind.startswith(kind), trial.kind


def test_faults_have_no_consequence_that_they_must_not_have():
    """Some of each kind that takes one process alone, from a process without threads."""
    command = [sys.executable, Path(injections.__file__).with_name("faults.py"), "--quick", "--injections", "5"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    assert "injections: 0 failures" in done.stdout


@pytest.fixture
def empty_scene(tmp_path):
    return scene.Scene(tmp_path, random.Random(0), undisturbed=None)


MESSAGE = "llp fit: error: ckpt_path = last.ckpt: it is damaged"


@pytest.mark.parametrize(
    ("outcome", "kind"),
    [
        (Outcome(None, "", ""), scene.HANG),
        (Outcome(1, "", f"{MESSAGE}\nTraceback (most recent call last):"), scene.TRACEBACK),
        (Outcome(1, "", "llp fit: error: something is wrong"), scene.UNCLEAR),
        (Outcome(1, "", f"{MESSAGE}\n{MESSAGE}"), scene.UNCLEAR),
        (Outcome(0, "", MESSAGE), scene.UNCLEAR),
    ],
)
def test_only_one_message_that_names_the_file_is_a_refusal(empty_scene, outcome, kind):
    empty_scene.refused(Outcome(1, "", MESSAGE), "last.ckpt")
    with pytest.raises(scene.OutcomeError) as caught:
        empty_scene.refused(outcome, "last.ckpt")
    assert caught.value.kind == kind


def test_another_metric_and_a_lost_checkpoint_are_failures(empty_scene):
    empty_scene.same("test", [1.0], [1.0])
    with pytest.raises(scene.OutcomeError, match=scene.WRONG):
        empty_scene.same("test", [1.0], [1.5])
    assert empty_scene.kept(0) == 0
    with pytest.raises(scene.OutcomeError, match=scene.LOST):
        empty_scene.kept(4)  # there is none


def test_half_a_checkpoint_in_the_place_of_a_whole_one_is_a_lost_one(empty_scene):
    path = empty_scene.folder / undisturbed.RUN / "checkpoints/last.ckpt"
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half")
    with pytest.raises(scene.OutcomeError, match=scene.LOST):
        injections.there_is_room_again(empty_scene, undisturbed.FIT)
