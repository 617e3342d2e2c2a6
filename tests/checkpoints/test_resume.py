"""A run that can't be lost: stopped anywhere and resumed, it is the uninterrupted one bit for bit."""

import os
import signal

import numpy as np
import pytest
import torch

from helpers.in_process import call
from helpers.runs import EPOCHS, assert_same_run, at_call, curves
from helpers.signal_handlers import handlers_restored
from llp.scoring.metric import Score
from llp.signals import LISTENER, Stopped


def kill(signum):
    return lambda: os.kill(os.getpid(), signum)


def crash():
    raise RuntimeError("the machine has caught fire")


class Whole:
    """Uninterrupted runs of `tiny.yaml` with some flags, each trained once for all tests of this file."""

    def __init__(self, folder):
        self.folder, self.config, self.names = folder, folder / "tiny.yaml", {}

    def __call__(self, *flags):
        name = self.names.get(flags)
        if name is None:
            name = self.names[flags] = f"whole-{len(self.names)}"
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(self.folder)
                assert call("fit", "--config", self.config, *flags, "--name", name) == 0
        return self.folder / "lightning_logs" / name


@pytest.fixture(scope="module")
def whole(finished):
    return Whole(finished)


DROPOUT = ("--model.init_args.dropout", 0.2)
EVERY = ("--checkpoint.every_n_train_steps", 1)
ACCUMULATED = ("--trainer.accumulate_grad_batches", 3)


@pytest.mark.parametrize(
    ("method", "number", "act", "flags"),
    [
        ("training_step", 0, kill(signal.SIGINT), ()),
        ("training_step", 3, kill(signal.SIGUSR1), ()),  # a validation is due after this batch
        ("validation_step", 4, kill(signal.SIGTERM), ()),
        ("training_step", 7, kill(signal.SIGTERM), (*ACCUMULATED, *DROPOUT)),  # amid an optimizer step
        ("training_step", 4, crash, (*EVERY, *DROPOUT, "--trainer.precision", "bf16-mixed")),
        ("validation_step", 3, crash, EVERY),
        ("training_step", 3, kill(signal.SIGTERM), EPOCHS),  # an epoch's last batch, where a validation is due too
        ("training_step", 3, kill(signal.SIGTERM), (*EPOCHS, "--trainer.val_check_interval", 3)),  # and where not
        ("training_step", 6, kill(signal.SIGTERM), (*EPOCHS, *DROPOUT)),  # in a later epoch
    ],
)
def test_a_run_stopped_anywhere_equals_the_uninterrupted_one(run, work, whole, method, number, act, flags):
    arguments = ("--config", whole.config, *flags)
    uninterrupted = whole(*flags)
    with pytest.MonkeyPatch.context() as patch:
        at_call(patch, method, number, act)
        try:
            status, _, err = run("fit", *arguments, "--name", "stopped")
        except RuntimeError:
            pass
        else:
            assert status in (130, 138, 143), err
            assert "with: llp fit --ckpt_path lightning_logs/stopped/checkpoints/last.ckpt" in err
    status, _, err = run("fit", "--ckpt_path", "last", "--name", "stopped")
    assert status == 0, err
    assert_same_run(uninterrupted, work / "lightning_logs/stopped")
    if EPOCHS[0] in flags:  # they are as short as the calls above assume
        checkpoint = torch.load(uninterrupted / "checkpoints/last.ckpt", weights_only=True)
        assert checkpoint["global_step"] == 3 * 4


def test_a_signal_in_the_last_step_changes_nothing(run, work, whole):
    with pytest.MonkeyPatch.context() as patch:
        at_call(patch, "training_step", 5, kill(signal.SIGTERM))
        assert run("fit", "--config", whole.config, "--name", "stopped")[0] == 0
    assert_same_run(whole(), work / "lightning_logs/stopped")


def test_auto_starts_and_resumes(run, work, whole):
    arguments = ("fit", "--config", whole.config, "--ckpt_path", "auto")
    assert run(*arguments)[0] == 1  # which run?
    with pytest.MonkeyPatch.context() as patch:  # killed before anything was saved
        at_call(patch, "training_step", 1, crash)
        with pytest.raises(RuntimeError):
            run(*arguments, "--name", "run")
    with pytest.MonkeyPatch.context() as patch:
        at_call(patch, "training_step", 4, kill(signal.SIGTERM))
        assert run(*arguments, "--name", "run")[0] == 143
    folder = work / "lightning_logs/run/checkpoints"
    (folder / ".last.ckpt.unfinished").write_bytes(b"half of it")
    last = folder / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-1000])  # a damaged disk
    status, _, err = run("fit", "--ckpt_path", last)
    assert status == 1
    assert "last.ckpt: it is damaged or is not a checkpoint" in err
    assert f"the newest whole one beside it is {folder / 'best.ckpt'}" in err
    (work / "slurm.yaml").write_text("name: run\n")
    assert run(*arguments, "--config", "slurm.yaml")[0] == 0
    assert {path.name for path in folder.iterdir()} == {"best.ckpt", "last.ckpt"}
    assert_same_run(whole(), work / "lightning_logs/run")


def test_a_signal_outside_of_training_ends_at_once(run, work, monkeypatch):
    monkeypatch.setattr("datamodules.WikiText103.setup", lambda self, stage: os.kill(os.getpid(), signal.SIGTERM))
    status, _, err = run("fit", "--config", "tiny.yaml")
    assert status == 143
    assert "stopped by SIGTERM" in err
    assert "Resume from" not in err


def test_a_second_interrupt_does_not_wait():
    with handlers_restored():
        LISTENER.listen()
        LISTENER.deferring = True
        for signum in (signal.SIGINT, signal.SIGTERM):
            kill(signum)()
            assert LISTENER.received == signal.SIGINT
        with pytest.raises(Stopped, match="SIGINT"):
            kill(signal.SIGINT)()


def test_the_status_says_what_ended_it():
    """Others follow when a job's tasks end one after the other."""
    with handlers_restored():
        LISTENER.listen()
        with pytest.raises(Stopped, match="SIGUSR1"):
            kill(signal.SIGUSR1)()
        kill(signal.SIGTERM)()
        LISTENER.close()
        for signum in (signal.SIGTERM, signal.SIGUSR1):
            kill(signum)()  # would end this process
        assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL  # Ctrl-C always does


def test_what_was_best_before_a_resume_stays_so(run, work, monkeypatch):
    """From another folder too, where the run's own has another name."""
    figures = [3.0, 2.0, 2.5, 2.25, 2.75]
    monkeypatch.setattr(Score, "total", lambda self: {"loss": figures.pop(0)})
    flags = ("--checkpoint.save_top_k", 2, "--trainer.val_check_interval", 1)
    arguments = ("--config", "tiny.yaml", "--name", "run", "--trainer.max_steps", 3)
    assert run("fit", *arguments, *flags)[0] == 0
    (work / "elsewhere").mkdir()
    monkeypatch.chdir(work / "elsewhere")
    last = "../lightning_logs/run/checkpoints/last.ckpt"
    status, _, err = run("fit", "--ckpt_path", last, "--trainer.max_steps", 5)
    assert status == 0, err
    folder = work / "lightning_logs/run/checkpoints"
    assert {path.name for path in folder.iterdir()} == {
        "best.ckpt",
        "last.ckpt",
        "best-step=2.ckpt",
        "best-step=4.ckpt",
    }
    assert (folder / "best.ckpt").resolve().name == "best-step=2.ckpt"


def test_a_job_has_a_folder_of_its_own(run, work, monkeypatch):
    """`--ckpt_path auto` looks where the job before it was requeued has written."""
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    arguments = ("fit", "--config", "tiny.yaml", "--ckpt_path", "auto")
    with pytest.MonkeyPatch.context() as patch:
        at_call(patch, "training_step", 4, kill(signal.SIGUSR1))
        assert run(*arguments)[0] == 138
    assert run(*arguments)[0] == 0
    assert [path.name for path in (work / "lightning_logs").iterdir()] == ["4711"]
    steps = [step for step, _ in curves(work / "lightning_logs/4711")["train/loss"]]
    assert steps == [0, 1, 2, 3, 4, 5]


# Lightning has no `16-mixed` for the CPU: its plugin does, with the CPU's own scaler of the loss.
HALF = """
trainer:
  plugins:
    - class_path: lightning.pytorch.plugins.MixedPrecision
      init_args: {precision: 16-mixed, device: cpu, scaler: {class_path: torch.amp.GradScaler, init_args: SCALER}}
""".replace("SCALER", "{device: cpu, init_scale: 1.0e+9, backoff_factor: 0.01}")


def test_half_precision_trains_and_resumes(run, work, whole):
    """The first steps overflow, and the scale falls until they don't."""
    (whole.folder / "half.yaml").write_text(HALF)
    flags = ("--config", whole.folder / "half.yaml", "--trainer.max_steps", 12)
    flags += ("--model.init_args.warmup_steps", 0, "--model.init_args.learning_rate", 3e-3)
    uninterrupted = whole(*flags)
    with pytest.MonkeyPatch.context() as patch:
        at_call(patch, "training_step", 6, kill(signal.SIGTERM))
        assert run("fit", "--config", whole.config, *flags, "--name", "stopped")[0] == 143
    assert run("fit", "--ckpt_path", "last", "--name", "stopped")[0] == 0
    assert_same_run(uninterrupted, work / "lightning_logs/stopped")
    checkpoint = torch.load(uninterrupted / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["MixedPrecision"]["scale"] < 1e9
    scalars = curves(uninterrupted)
    norms, losses = ([value for _, value in scalars[f"train/{tag}"]] for tag in ("grad_norm", "loss"))
    assert not np.isfinite(norms[0])
    assert np.isfinite(norms[-1])
    assert losses[-1] < losses[0]
