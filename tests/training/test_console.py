"""What a run prints: its first screen against numbers by hand, validation lines, the bar, and its last screen."""

import json
import re
import shlex
import sys
from types import SimpleNamespace

import pytest
import torch

import llp
from helpers.runs import curves
from llp.language_model import LanguageModel
from llp.scoring.metric import Score
from llp.training import progress as progress_module
from llp.training.console import changed_settings
from llp.training.progress import Moments

# The first screen


def test_what_is_trained_on_what(run, work):
    status, out, err = run("fit", "--config", "tiny.yaml", "--name", "run")
    assert status == 0, err
    title, rows = screen(out.partition("\nFinished")[0])
    weights = torch.load(work / "lightning_logs/run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    n_parameters = sum(weight.numel() for weight in weights.values())
    assert title == f"LLP on WikiText103: {n_parameters:,} parameters in 2 layers"
    # Four segments of 8: each causal, and all but the first see the one before. A pair takes two products of 16.
    pairs = 4 * 36 + 3 * 64
    layer = 32 * (16 * 16 + 16 * 32 + 16 * 16 + 2 * 16 * 64) + 2 * pairs * 16  # query, key and value, output, MLP
    flops = 3 * 2 * (2 * layer + 32 * 16 * 257) / 32
    assert rows["window"] == ["32 tokens, 32 of them with a loss"]
    assert rows["step"] == [f"4 windows: 128 trained tokens at {flops / 1e6:.3f} MFLOP each"]
    assert rows["run"] == ["6 steps, 768 trained tokens; seed 0"]
    assert re.fullmatch(r"cpu \(\d+ threads?\), precision 32-true", *rows["device"])
    assert rows["folder"] == ["lightning_logs/run"]


def test_settings_that_are_not_the_defaults_are_said():
    assert changed_settings(llp.LLP(19)) == {"vocab_size": 19}
    assert changed_settings(llp.LLP(19, segment_len=256, n_heads=4)) == {"vocab_size": 19, "n_heads": 4}


# Validation lines and the last screen


def last_screen(out):
    return screen(out[re.search("^(Finished|Ended)", out, flags=re.MULTILINE).start() :])


def screen(out):
    """Title and rows of a screen: label to lines."""
    title, *lines = out.splitlines()
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


# Progress

BAR = ("--config", "tiny.yaml", "--trainer.enable_progress_bar", "true")


def progress(out):
    """The lines of a log that say how far the run is."""
    return [line for line in out.splitlines() if re.match("step [0-9,]+( of [0-9,]+)?, ", line)]


def test_a_log_has_a_line_each_minute_and_each_tenth(monkeypatch):
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress_module, "time", SimpleNamespace(monotonic=lambda: clock.now))
    moments, endless, seen, seen_endless = Moments(200, 50), Moments(None, 0), [], []
    for step in range(51, 201):
        clock.now += 61 if step in (55, 163) else 1
        seen += [step] if moments.has_come(step) else []
        seen_endless += [step] if endless.has_come(step) else []
    assert seen == [55, 60, 80, 100, 120, 140, 160, 163, 180, 200]
    assert seen_endless[:2] == [55, 115]


def test_the_time_left_follows_from_the_rate_since_the_resume(run, work, monkeypatch):
    """Ten seconds a step."""
    assert run("fit", *BAR, "--name", "run", "--trainer.max_steps", 4)[0] == 0
    seconds, step, records = [0.0], LanguageModel.training_step, []

    def slow(self, *arguments):
        seconds[0] += 10
        records.append(json.loads((work / "lightning_logs/run/run.json").read_text())["step"])
        return step(self, *arguments)

    monkeypatch.setattr(progress_module, "time", SimpleNamespace(monotonic=lambda: seconds[0]))
    monkeypatch.setattr(LanguageModel, "training_step", slow)
    flags = ("--trainer.max_steps", 8, "--trainer.val_check_interval", 100)
    status, out, err = run("fit", "--ckpt_path", "last", "--name", "run", *flags)
    assert status == 0, err
    line = r"step (\d) of 8, loss \d\.\d+(?:, [\d,]+ tokens/s)?, (\S+) left"
    shown = [re.fullmatch(line, text).groups() for text in progress(out)]
    assert shown == [("5", "00:30"), ("6", "00:20"), ("7", "00:10"), ("8", "00:00")]
    assert records == [4, 5, 6, 7]  # `run.json` follows
    assert "\r" not in out


def test_a_terminal_has_one_line_that_is_rewritten(run, work, monkeypatch):
    monkeypatch.setattr(progress_module, "_REFRESH_S", -1.0)
    monkeypatch.setattr(type(sys.stdout), "isatty", lambda self: True)
    status, out, err = run("fit", *BAR)
    assert status == 0, err
    lines = [text for text in re.split("\r\033\\[K|\n", out) if re.match(r"step \d+ of 6, ", text)]
    assert [line.split()[1] for line in lines] == [*"1234", "4", "5", "6", "6"]  # twice where it is validated
    assert [line for line in lines if "validating" in line] == [lines[4], lines[7]]
    visible = [line.rpartition("\033[K")[2] for line in out.splitlines()]
    assert sum(re.fullmatch(r"step [46]: validation loss .*", line) is not None for line in visible) == 2
