"""A line for each validation, and the last screen of a run."""

import re
import shlex

import pytest
import torch

from helpers.runs import curves
from llp.scoring.metric import Score


def last_screen(out):
    """Title and rows of the last screen: label to lines."""
    title, *lines = out[re.search("^(Finished|Ended|Nothing)", out, flags=re.MULTILINE).start() :].splitlines()
    rows = {}
    for line in lines:
        label, text = re.fullmatch(r"  (\w*) +(\S.*)", line).groups()
        rows.setdefault(label or next(reversed(rows)), []).append(text)
    return title, rows


@pytest.fixture
def losses(monkeypatch):
    """What the validations to come shall find."""
    losses = []

    def total(self):
        return {"loss": losses[0], "perplexity": 1.0, "word_perplexity": 1.0, "bits_per_byte": 10 * losses.pop(0)}

    monkeypatch.setattr(Score, "total", total)
    return losses


def validation_lines(out):
    return [line for line in out.splitlines() if "validation loss" in line and not line.startswith("  ")]


def test_the_figures_of_a_run_at_its_end(run, work):
    status, out, err = run("fit", "--config", "tiny.yaml", "--name", "my run", "--trainer.enable_progress_bar", "true")
    assert status == 0, err
    folder = work / "lightning_logs/my run"
    scalars = curves(folder)
    figures = [
        f"step {step + 1}: validation loss {loss:.4f}, bits per byte {bits:.4f}"
        for (step, loss), (_, bits) in zip(scalars["val/loss"], scalars["val/bits_per_byte"], strict=True)
    ]
    assert len(figures) == 2
    assert [line.removesuffix(", the best so far") for line in validation_lines(out)] == figures
    title, rows = last_screen(out)
    assert title == "Finished: step 6 of 6"
    assert re.fullmatch(
        r"6 steps in \d\d:\d\d, validation included; 768 tokens in all, at [\d,]+ tokens/s between validations",
        *rows["trained"],
    )
    best = torch.load(folder / "checkpoints/best.ckpt", weights_only=True)["global_step"]
    assert rows["best"] == [f"{figures[best == 6]} (lightning_logs/my run/checkpoints/best.ckpt)"]
    assert rows["last"] == [f"{figures[1]} (lightning_logs/my run/checkpoints/last.ckpt)"]
    assert rows["folder"] == ["lightning_logs/my run"]
    # What it proposes can be typed.
    test, generate, fit = (shlex.split(command)[1:] for command in rows["next"])
    assert test[:2] == ["test", "--ckpt_path"]
    assert run(*test)[0] == 0
    assert run(*generate, "--max_tokens", 2)[0] == 0
    status, out, err = run(*fit, "--trainer.limit_val_batches", 0)
    assert status == 0, err
    title, rows = last_screen(out)
    assert title == "Finished: step 12 of 12"
    assert "6 steps in" in rows["trained"][0]
    assert "1,536 tokens in all, at" in rows["trained"][0]


def test_the_best_so_far_is_marked_and_kept(run, work, losses):
    every_step = ("--trainer.val_check_interval", 1, "--trainer.enable_progress_bar", "true")
    losses += [3.0, 2.0, 2.5]
    status, out, err = run("fit", "--config", "tiny.yaml", "--name", "run", *every_step, "--trainer.max_steps", 3)
    assert status == 0, err
    assert validation_lines(out) == [
        "step 1: validation loss 3.0000, bits per byte 30.0000, the best so far",
        "step 2: validation loss 2.0000, bits per byte 20.0000, the best so far",
        "step 3: validation loss 2.5000, bits per byte 25.0000",
    ]
    losses += [2.25, 2.125]
    last = "lightning_logs/run/checkpoints/last.ckpt"
    status, out, err = run("fit", "--ckpt_path", last, *every_step, "--trainer.max_steps", 5)
    assert status == 0, err
    assert "the best so far" not in out
    _, rows = last_screen(out)
    best = last.replace("last", "best")
    assert rows["best"] == [f"step 2: validation loss 2.0000, bits per byte 20.0000 ({best})"]
    assert rows["last"] == [f"step 5: validation loss 2.1250, bits per byte 21.2500 ({last})"]
    assert rows["next"][0] == f"llp test --ckpt_path {best}"
    assert torch.load(best, weights_only=True)["global_step"] == 2


def test_a_monitor_of_ones_own_says_what_is_best(run, losses):
    losses += [3.0, 4.0, 2.0]
    flags = ("--trainer.val_check_interval", 1, "--trainer.max_steps", 3, "--checkpoint.mode", "max")
    status, out, err = run("fit", "--config", "tiny.yaml", *flags, "--trainer.enable_progress_bar", "true")
    assert status == 0, err
    assert ["best" in line for line in validation_lines(out)] == [True, True, False]


def test_a_run_whose_epochs_are_over_says_so(run, work):
    epochs = ("--trainer.max_steps", -1, "--trainer.max_epochs", 2, "--trainer.limit_train_batches", 3)
    epochs += ("--trainer.val_check_interval", 3)
    assert run("fit", "--config", "tiny.yaml", "--name", "run", *epochs)[0] == 0
    last = "lightning_logs/run/checkpoints/last.ckpt"
    status, out, err = run("fit", "--ckpt_path", last, "--trainer.max_epochs", 1)
    assert status == 0, err
    title, rows = last_screen(out)
    assert title == "Nothing to train: the run is at its end, step 6"
    assert "trained" not in rows
    assert rows["next"][-1] == f"llp fit --ckpt_path {last} --trainer.max_epochs 2"


def test_a_run_that_ends_early_goes_on_as_it_is(run, work, losses):
    """By early stopping, say: no more steps are asked for than there were."""
    losses += [2.0, 3.0]
    early = "{class_path: lightning.pytorch.callbacks.EarlyStopping, init_args: {monitor: val/loss, patience: 1}}"
    flags = ("--trainer.val_check_interval", 2, "--trainer.callbacks", f"[{early}]", "--name", "run")
    status, out, err = run("fit", "--config", "tiny.yaml", *flags)
    assert status == 0, err
    title, rows = last_screen(out)
    assert title == "Ended early: step 4 of 6"
    assert rows["next"][-1] == "llp fit --ckpt_path lightning_logs/run/checkpoints/last.ckpt"
