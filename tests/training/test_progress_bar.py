"""One bar over the optimizer steps of a run; none without a terminal."""

import re
import sys

import pytest

from llp.language_model import LanguageModel


def states(out):
    """All states of the bar that were drawn, in their order."""
    return [text for text in re.split("[\r\n]", out) if re.match(r"step [\d,]+( of [\d,]+)? ", text)]


@pytest.fixture
def terminal(monkeypatch):
    """Standard output looks like a terminal, and the bar is drawn at each step."""
    monkeypatch.setattr("llp.training.progress_bar._REFRESH_S", -1.0)

    def fit(run, *flags):
        monkeypatch.setattr(type(sys.stdout), "isatty", lambda self: True)
        status, out, err = run("fit", "--config", "tiny.yaml", "--trainer.enable_progress_bar", "true", *flags)
        assert status == 0, err
        return out

    return fit


def test_a_resumed_bar_counts_its_own_rate(run, work, terminal, monkeypatch):
    """Ten seconds a step since the resume: what is left follows from these alone."""
    assert run("fit", "--config", "tiny.yaml", "--name", "run", "--trainer.max_steps", 4)[0] == 0
    seconds, step = [0.0], LanguageModel.training_step

    def slow(self, *arguments):
        seconds[0] += 10
        return step(self, *arguments)

    monkeypatch.setattr("tqdm.std.time", lambda: seconds[0])
    monkeypatch.setattr(LanguageModel, "training_step", slow)
    last = work / "lightning_logs/run/checkpoints/last.ckpt"
    out = terminal(run, "--ckpt_path", last, "--trainer.max_steps", 8, "--trainer.val_check_interval", 100)
    left = [re.match(r"step (\d) of 8 \|.*\| (\S+) left", state).groups() for state in states(out)]
    assert [*dict.fromkeys(left)] == [("4", "?"), ("5", "00:30"), ("6", "00:20"), ("7", "00:10"), ("8", "00:00")]


def test_the_bar_counts_optimizer_steps(run, work, terminal):
    out = terminal(run, "--trainer.accumulate_grad_batches", 3, "--trainer.limit_val_batches", 0)
    steps = [re.match(r"step (\d) of 6 ", state)[1] for state in states(out)]
    assert steps == [*"0123456", "6", "6"]  # drawn once each; the last again as the bar is left behind


def test_one_bar_for_all_epochs(run, work, terminal):
    """Without `max_steps` its length is that of the epochs."""
    epochs = ("--trainer.max_steps", -1, "--trainer.max_epochs", 2, "--data.init_args.batch_size", 40)
    out = terminal(run, *epochs, "--trainer.limit_train_batches", 4, "--trainer.limit_val_batches", 0)
    steps = [re.match(r"step (\d) of 8 ", state)[1] for state in states(out)]
    assert [*dict.fromkeys(steps)] == list("012345678")


def test_a_run_without_an_end_shows_its_time(run, work, terminal, monkeypatch):
    step = LanguageModel.training_step

    def stop_at_2(self, *arguments):
        self.trainer.should_stop = self.global_step == 1
        return step(self, *arguments)

    monkeypatch.setattr(LanguageModel, "training_step", stop_at_2)
    endless = ("--trainer.max_steps", -1, "--trainer.max_epochs", -1, "--trainer.limit_val_batches", 0)
    out = terminal(run, *endless)
    assert re.match(r"step 1 \d\d:\d\d, loss \d\.\d{3}", states(out)[1])
    assert "without an end" in out
    assert "Finished: step 2\n" in out


def test_validation_is_shown_on_the_same_bar(run, work, terminal):
    # With shared keys and values windows are scored one by one.
    out = terminal(run, "--trainer.limit_val_batches", 2, "--model.init_args.share_key_value", "true")
    metrics = r"loss \d\.\d{3}, [\d,]+ tokens/s"
    bar = rf"step \d of 6 \|.{{30}}\| (\?|\d\d:\d\d) left(, ({metrics}|validating.*))? *"
    assert all(re.fullmatch(bar, state) for state in states(out))
    lines = [line.rpartition("\r")[2] for line in out.splitlines()]  # validations have lines of their own
    assert sum(re.fullmatch(r"step [46]: validation loss .*", line) is not None for line in lines) == 2
    shown = [state.partition("left, ")[2].strip() for state in states(out) if state.startswith("step 4 of 6")]
    assert [text for text in shown if text.startswith("validating")][:3] == [
        "validating",
        "validating, batch 1 of 2",
        "validating, batch 2 of 2",
    ]
    assert "Validation" not in out


def test_without_a_terminal_there_is_a_line_for_each_validation(run, work):
    status, out, err = run("fit", "--config", "tiny.yaml", "--trainer.enable_progress_bar", "true")
    assert status == 0, err
    assert "\r" not in out
    progress = [line for line in out.splitlines() if line.startswith("step")]
    assert [line.partition(":")[0] for line in progress] == ["step 4", "step 6"]
    status, out, err = run("fit", "--config", "tiny.yaml")  # enable_progress_bar: false
    assert status == 0, err
    assert "\r" not in out
    assert not [line for line in out.splitlines() if line.startswith("step")]


def test_a_bar_of_ones_own_replaces_it(run, work):
    own = "[{class_path: lightning.pytorch.callbacks.TQDMProgressBar, init_args: {refresh_rate: 1}}]"
    flags = ("--trainer.enable_progress_bar", "true", "--trainer.callbacks", own)
    status, out, err = run("fit", "--config", "tiny.yaml", *flags)
    assert status == 0, err
    assert "Epoch 0" in out
    assert "step 4: validation loss" in out
