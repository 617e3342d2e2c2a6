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
from llp.training import console, throughput
from llp.training.console import changed_settings, text_block, with_unit

# The first screen


@pytest.fixture
def screen(run, monkeypatch):
    """The rows of the first screen of a run: label to text; `title` is its first line."""
    peak = throughput.PeakRate(95.24e9, is_measured=True)
    monkeypatch.setattr("llp.training.console.peak_rate", lambda device, dtype: peak)

    def screen(*flags):
        status, out, err = run("fit", "--config", "tiny.yaml", *flags)
        assert status == 0, err
        assert out.count("parameters in") == 1
        title, *lines = out.partition("\nFinished")[0].splitlines()
        rows = {}
        for label, text in (re.fullmatch(r"  (\w*) +(\S.*)", line).groups() for line in lines):
            if label:
                rows[label] = text
            else:  # the row goes on
                rows[next(reversed(rows))] += f" {text}"
        return {"title": title, **rows}

    return screen


def test_what_is_trained_on_what(screen, work):
    rows = screen("--name", "run")
    weights = torch.load(work / "lightning_logs/run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    n_parameters = sum(weight.numel() for weight in weights.values())
    assert rows["title"] == f"LLP on WikiText103: {n_parameters:,} parameters in 2 layers"
    # Four segments of 8: each causal, and all but the first see the one before. A pair takes two products of 16.
    pairs = 4 * 36 + 3 * 64
    layer = 32 * (16 * 16 + 16 * 32 + 16 * 16 + 2 * 16 * 64) + 2 * pairs * 16  # query, key and value, output, MLP
    flops = 3 * 2 * (2 * layer + 32 * 16 * 257) / 32
    assert rows["window"] == "32 tokens, a loss at each, from a context of up to 24 tokens"
    assert rows["step"] == f"4 windows: 128 trained tokens at {flops / 1000:.3g} kFLOP each; learning rate up to 0.01"
    assert rows["run"] == "6 steps, 768 trained tokens in all; validated every 4 steps and at the end; seed 0"
    assert rows["device"].startswith("cpu (")
    assert rows["device"].endswith(", precision 32-true; matrix products at 95.2 GFLOP/s, measured")
    assert rows["folder"] == "lightning_logs/run"
    assert rows["watch"] == "tensorboard --logdir lightning_logs"


def test_latents(screen):
    rows = screen("--model", "llp.PerceiverAR", "--model.init_args.latent_len", 12)
    assert rows["window"] == "32 tokens, a loss at the last 12, from a context of up to 32 tokens"
    assert rows["step"].startswith("4 windows: 48 trained tokens at ")
    assert rows["run"].startswith("6 steps, 288 trained tokens in all")


def test_accumulated_and_resumed(screen, work):
    """Steps in all, and tokens of all sessions: the first one's batches were half as large."""
    assert "resumed" not in screen("--name", "run", "--trainer.max_steps", 4)["run"]
    last = ("--ckpt_path", work / "lightning_logs/run/checkpoints/last.ckpt", "--trainer.max_steps", 8)
    rows = screen(*last, "--trainer.accumulate_grad_batches", 2, "--trainer.limit_val_batches", 3)
    assert rows["step"].startswith("8 windows (4 at a time, 2 times): 256 trained tokens at ")
    tokens = 4 * 128 + 4 * 256
    length = f"resumed from step 4 of 8, {tokens:,} trained tokens in all"
    assert rows["run"] == f"{length}; validated with limit_val_batches=3 every 2 steps and at the end; seed 0"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, "validated every 4 steps and at the end"),
        ({"accumulate_grad_batches": 2}, "validated every 2 steps and at the end"),
        ({"val_check_batch": 100}, "validated at the end"),
        ({"_val_check_time_interval": 150.0}, "validated every 02:30 and at the end"),
        ({"limit_val_batches": 3}, "validated with limit_val_batches=3 every 4 steps and at the end"),
        ({"num_val_batches": [0]}, "never validated"),
        # A run that ends with its epochs has no validation after its last step.
        ({"max_steps": -1}, "validated every 4 steps"),
        ({"max_steps": -1, "val_check_batch": 100}, "never validated"),
    ],
)
def test_when_a_run_is_validated(settings, expected):
    usual = {"max_steps": 6, "estimated_stepping_batches": 6, "val_check_batch": 4, "accumulate_grad_batches": 1}
    usual |= {"limit_val_batches": 1.0, "num_val_batches": [9], "_val_check_time_interval": None}
    assert console._validation(SimpleNamespace(**(usual | settings))) == expected


def test_a_start_from_another_runs_weights(screen):
    screen("--name", "first", "--trainer.max_steps", 4)
    origin = "lightning_logs/first/checkpoints/last.ckpt"
    rows = screen("--name", "second", "--init_from", origin, "--trainer.limit_val_batches", 0)
    assert rows["weights"] == f"those of step 4 in {origin}"
    assert rows["run"] == "6 steps, 768 trained tokens in all; never validated; seed 0"


class Own(llp.LLP):
    """Another default than the class that it inherits from, and a setting without one."""

    def __init__(self, vocab_size, flavour, dropout=0.2, **kwargs):
        super().__init__(vocab_size, dropout=dropout, **kwargs)


def test_settings_that_are_not_the_defaults_are_said():
    assert changed_settings(llp.LLP(19)) == {"vocab_size": 19}
    assert changed_settings(llp.LLP(19, segment_len=256, n_heads=4)) == {"vocab_size": 19, "n_heads": 4}
    assert changed_settings(Own(19, "sour")) == {"vocab_size": 19, "flavour": "sour"}
    assert changed_settings(Own(19, "sour", dropout=0.0, segment_len=8)) == {
        "vocab_size": 19,
        "flavour": "sour",
        "dropout": 0.0,
        "segment_len": 8,
    }


def test_numbers_with_a_unit():
    assert with_unit(95.24e9, "FLOP/s") == "95.2 GFLOP/s"
    assert with_unit(999.4, "FLOP") == "999 FLOP"
    assert with_unit(999.6, "FLOP") == "1 kFLOP"
    assert with_unit(989.4e12, "FLOP/s") == "989 TFLOP/s"


def test_the_texts_of_a_block_stand_in_one_column():
    block = text_block("Title", [("one", "first\nsecond"), ("longer", "third")])
    assert block.splitlines() == ["Title", "  one     first", "          second", "  longer  third"]


def test_burn_in(screen):
    """Two layers of segments of 8: a reach of 16, so that no position has less context than 17 tokens."""
    rows = screen("--data.init_args.burn_in", "reach")
    assert rows["window"] == (
        "32 tokens, a loss at each after 16 that are read without one, from a context of 17 to 24 tokens"
    )
    layers = [(48, 40), (40, 32)]  # positions that enter it and leave it
    linear = sum(2 * n_in * 16 * 32 + 2 * n_out * (2 * 16 * 16 + 2 * 16 * 64) for n_in, n_out in layers)
    pairs = sum(n_out // 8 * (64 + 36) for _, n_out in layers)
    flops = 3 * (linear + 4 * 16 * pairs + 2 * 32 * 16 * 257) / 32
    assert rows["step"].startswith(f"4 windows: 128 trained tokens at {flops / 1000:.3g} kFLOP each")


# Validation lines and the last screen


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


def test_a_validation_of_a_part_is_marked(run, work):
    """On a line of its own, without a bar, because there is no terminal."""
    arguments = ("--config", "tiny.yaml", "--name", "run", "--trainer.enable_progress_bar", "true")
    status, out, err = run("fit", *arguments, "--trainer.limit_val_batches", 2)
    assert status == 0, err
    validation = json.loads((work / "lightning_logs/run/run.json").read_text())["validations"][-1]
    assert validation["complete"] is False
    lines = [line for line in out.splitlines() if line.startswith("step ")]
    assert [line.partition(":")[0] for line in lines] == ["step 4", "step 6"]
    assert all(", on a part of the split" in line for line in lines)
    assert "\r" not in out


# The bar


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
    metrics = r"loss \d\.\d{3}(, [\d,]+ tokens/s)?"
    bar = rf"step \d of 6 \|.{{30}}\| (\?|\d\d:\d\d) left(, ({metrics}|validating.*))? *"
    assert [state for state in states(out) if not re.fullmatch(bar, state)] == []
    lines = [line.rpartition("\r")[2] for line in out.splitlines()]  # validations have lines of their own
    assert sum(re.fullmatch(r"step [46]: validation loss .*", line) is not None for line in lines) == 2
    shown = [state.partition("left, ")[2].strip() for state in states(out) if state.startswith("step 4 of 6")]
    assert [text for text in shown if text.startswith("validating")][:3] == [
        "validating",
        "validating, batch 1 of 2",
        "validating, batch 2 of 2",
    ]
    assert "Validation" not in out


def test_a_bar_of_ones_own_replaces_it(run, work):
    own = "[{class_path: lightning.pytorch.callbacks.TQDMProgressBar, init_args: {refresh_rate: 1}}]"
    flags = ("--trainer.enable_progress_bar", "true", "--trainer.callbacks", own)
    status, out, err = run("fit", "--config", "tiny.yaml", *flags)
    assert status == 0, err
    assert "Epoch 0" in out
    assert "step 4: validation loss" in out
