"""The first screen of a run, against figures by hand."""

import re
from types import SimpleNamespace

import pytest
import torch

import llp
from helpers.runs import curves
from llp.training import throughput
from llp.training.console import RunSummary, StartReport, changed_settings, text_block, with_unit


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


def test_when_a_run_is_validated(screen, work):
    """As it will be: one that ends with its epochs has no last validation."""
    longer = ("--trainer.val_check_interval", 100)
    assert "; validated at the end; " in screen(*longer)["run"]
    epoch = ("--trainer.max_steps", -1, "--trainer.max_epochs", 1, "--trainer.limit_train_batches", 5)
    assert screen(*epoch)["run"] == "5 steps, 640 trained tokens in all; validated every 4 steps; seed 0"
    assert "; never validated; " in screen(*epoch, *longer)["run"]
    two_epochs = (*epoch, "--trainer.max_epochs", 2, "--trainer.val_check_interval", 7)
    assert "10 steps, 1,280 trained tokens in all; validated every 7 steps; " in screen(*two_epochs)["run"]
    timed = ("--trainer.val_check_interval", "00:00:02:30", "--name", "timed")
    assert "; validated every 02:30 and at the end; " in screen(*timed)["run"]
    assert [step for step, _ in curves(work / "lightning_logs/timed")["val/loss"]] == [5]


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


def test_only_one_process_speaks(capsys):
    """The others only take part in what all of them must."""
    trainer = SimpleNamespace(is_global_zero=False, log_dir="run", global_step=0)
    StartReport().on_train_start(trainer, None)
    summary = RunSummary()
    summary.on_fit_start(trainer, None)
    summary.on_train_start(trainer, None)
    summary.on_fit_end(trainer, None)
    assert capsys.readouterr().out == ""


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
