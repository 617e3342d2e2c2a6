"""Optimizer steps of the announced size, and Lightning's own flags: they do what they say, or are refused by name."""

import json

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch.utils.data import DataLoader, TensorDataset

import llp
from helpers.refusals import assert_one_message
from helpers.runs import curves
from llp.errors import SettingError
from llp.language_model import LanguageModel

FIT = ("fit", "--config", "tiny.yaml", "--name", "run")
CALLBACK = "lightning.pytorch.callbacks."
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--trainer.overfit_batches", 2), "trainer.overfit_batches = 2: training would take new windows"),
        (
            ("--trainer.limit_train_batches", 5, "--trainer.accumulate_grad_batches", 4),
            "trainer.limit_train_batches = 5: an epoch of 5 batches would end within an optimizer step of "
            "trainer.accumulate_grad_batches = 4; set it to 8 or 4",
        ),
        (
            (f"--trainer.callbacks={CALLBACK}StochasticWeightAveraging", "--trainer.callbacks.swa_lrs=0.1"),
            "trainer.callbacks = StochasticWeightAveraging: its schedule would take the place of the model's",
        ),
        (
            (f"--trainer.callbacks={CALLBACK}GradientAccumulationScheduler", "--trainer.callbacks.scheduling={0: 2}"),
            "trainer.callbacks = GradientAccumulationScheduler: the size of a step is announced once",
        ),
        (
            (f"--trainer.callbacks={CALLBACK}LearningRateFinder",),
            "trainer.callbacks = LearningRateFinder: what it finds is not used",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_would_train_something_else_is_refused(run, work, flags, message):
    assert_one_message(run(*FIT, *flags), message)
    assert not (work / "lightning_logs/run/checkpoints").exists()


def test_an_epoch_of_the_data_has_whole_steps(run, work):
    """The text has 19 batches; an epoch takes 16 of them in steps of four, and the next goes on with the 17th."""
    window = ("--data.init_args.window_len", 192, "--data.init_args.batch_size", 4)
    epochs = ("--trainer.max_steps", -1, "--trainer.max_epochs", 2, "--trainer.accumulate_grad_batches", 4)
    status, _, err = run(*FIT, *window, *epochs, "--trainer.limit_val_batches", 0)
    assert status == 0, err
    saved = torch.load(work / "lightning_logs/run/checkpoints/last.ckpt", weights_only=True)
    n_batches = (work / "wikitext/wiki.train.tokens").stat().st_size // 192 // 4
    assert n_batches % 4
    assert saved["global_step"] == 2 * (n_batches // 4)
    assert saved["callbacks"]["RunMetrics"]["tokens"] == saved["global_step"] * 4 * 4 * 192


def test_another_accumulation_on_a_resume_gives_whole_steps_or_is_refused(run, trained):
    """The run has taken six batches."""
    resume = ("fit", "--name", "run", "--ckpt_path", "last", "--trainer.max_steps", 8)
    message = "trainer.accumulate_grad_batches = 4: the run is resumed after 6 batches, and the first step would take"
    assert_one_message(run(*resume, "--trainer.accumulate_grad_batches", 4), message)
    status, _, err = run(*resume, "--trainer.accumulate_grad_batches", 3)
    assert status == 0, err
    tokens = dict(curves(trained)["train/tokens"])
    assert [tokens[step] / (4 * 32) for step in range(4, 8)] == [5, 6, 9, 12]


def fit(n_windows, **settings):
    """From Python, with anybody's loader of windows, two in a batch."""
    model = llp.LLP(19, dim=16, n_layers=1, n_heads=2, segment_len=4, schedule="halving", warmup_steps=2)
    windows = torch.randint(19, (n_windows, 9))
    loader = DataLoader(TensorDataset(windows[:, :-1], windows[:, 1:]), batch_size=2)
    trainer = Trainer(accelerator="cpu", **{"log_every_n_steps": 1, **QUIET, **settings})
    trainer.fit(model, loader)
    return trainer


def test_python_refuses_what_the_command_line_does():
    with pytest.raises(SettingError, match=r"limit_train_batches = 5: .* set it to 6 or 3"):
        fit(10, max_steps=4, accumulate_grad_batches=3)
    with pytest.raises(SettingError, match="overfit_batches"):
        fit(8, max_steps=4, overfit_batches=1)
    with pytest.raises(SettingError, match="GradientAccumulationScheduler"):
        fit(8, max_steps=4, callbacks=[GradientAccumulationScheduler({0: 1, 1: 2})])
    assert fit(12, max_epochs=2, accumulate_grad_batches=3).global_step == 4
    with pytest.warns(UserWarning, match="the warm-up takes all of the run's 2 steps"):
        fit(12, max_steps=2)


def test_what_ends_a_run_waits_for_the_step(run, work, monkeypatch):
    """Here in the second batch of the second step, as `max_time` may."""
    step, calls = LanguageModel.training_step, []

    def stopping(self, *arguments):
        calls.append(None)
        self.trainer.should_stop = self.trainer.should_stop or len(calls) == 5
        return step(self, *arguments)

    monkeypatch.setattr(LanguageModel, "training_step", stopping)
    status, out, err = run(*FIT, "--trainer.accumulate_grad_batches", 3)
    assert status == 0, err
    assert "Ended early: step 2 of 6" in out
    saved = torch.load(work / "lightning_logs/run/checkpoints/last.ckpt", weights_only=True)
    assert saved["WikiText103"]["batches_taken"] == len(calls) == 6
    assert run("fit", "--name", "run", "--ckpt_path", "last")[0] == 0


def test_a_run_that_max_time_has_ended_says_what_to_set(run, work, monkeypatch):
    elapsed, step = [0.0], LanguageModel.training_step

    def slow(self, *arguments):
        elapsed[0] += 1850
        return step(self, *arguments)

    monkeypatch.setattr(LanguageModel, "training_step", slow)
    monkeypatch.setattr("lightning.pytorch.callbacks.Timer.time_elapsed", lambda self, stage=None: elapsed[0])
    status, out, err = run(*FIT, "--trainer.max_time", "00:01:00:00", "--trainer.limit_val_batches", 0)
    assert status == 0, err
    assert "llp fit --ckpt_path lightning_logs/run/checkpoints/last.ckpt --trainer.max_time 00:02:04:00" in out
    monkeypatch.undo()
    monkeypatch.chdir(work)
    resume = ("fit", "--name", "run", "--ckpt_path", "last")
    message = "trainer.max_time = 1:00:00: the run has trained for 1:01:40, and this counts all of it; set it higher"
    assert_one_message(run(*resume), message)
    status, out, err = run(*resume, "--trainer.max_time", "00:02:00:00")
    assert status == 0, err
    assert "Finished: step 6 of 6" in out


def test_a_checkpoint_of_weights_alone_is_tested_and_starts_runs_but_resumes_none(run, work):
    extra = {"dirpath": "extra", "save_weights_only": True, "every_n_train_steps": 3, "save_top_k": -1}
    callbacks = json.dumps([{"class_path": f"{CALLBACK}ModelCheckpoint", "init_args": extra}])
    status, _, err = run(*FIT, "--trainer.callbacks", callbacks)
    assert status == 0, err
    path = min((work / "extra").iterdir())
    assert run("test", "--ckpt_path", path)[0] == 0
    assert_one_message(
        run("fit", "--ckpt_path", path), "it holds no optimizer's state; start a new run from its weights"
    )
    assert run("fit", "--config", "tiny.yaml", "--name", "new", "--init_from", path)[0] == 0


def test_a_run_of_averaged_weights_resumes_with_its_average_only(run, work):
    average = json.dumps([{"class_path": f"{CALLBACK}EMAWeightAveraging", "init_args": {"decay": 0.9}}])
    assert run(*FIT, "--trainer.callbacks", average, "--trainer.max_steps", 3)[0] == 0
    resume = ("fit", "--name", "run", "--ckpt_path", "last", "--trainer.max_steps", 4)
    message = "trainer.callbacks = none: the run averages its weights, and those of its checkpoint are the average"
    assert_one_message(run(*resume, "--trainer.callbacks", "null"), message)
    assert run(*resume)[0] == 0
