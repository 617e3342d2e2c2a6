"""A task from end to end: trained, stopped and resumed, scored in its own columns; what needs a text is refused."""

import json
import math
import signal

import pytest
import torch
from torch.nn.functional import one_hot

from helpers.refusals import assert_one_message
from helpers.runs import assert_same_run, at_call, curves
from llp.decoder.geometry import Geometry
from llp.scoring.label_metric import LabelScore

TASK = """
model:
  class_path: llp.LLP
  init_args: {dim: 16, n_layers: 2, n_heads: 2, segment_len: 4, dropout: 0.1, learning_rate: 1.0e-2, schedule: halving}
data:
  class_path: datamodules.AssociativeRecall
  init_args: {window_len: 32, n_pairs: 3, vocab_size: 32, batch_size: 4, n_validation: 10, n_test: 30, distance_bin: 8}
trainer: {accelerator: cpu, max_steps: 6, val_check_interval: 4, log_every_n_steps: 1, enable_progress_bar: false,
  gradient_clip_val: 1.0}
"""
COPY = ("--data", "datamodules.MirroredCopy", "--data.init_args.window_len", 32, "--data.init_args.vocab_size", 32)
COPY += ("--data.init_args.batch_size", 4, "--data.init_args.n_validation", 10, "--data.init_args.n_test", 30)


@pytest.fixture
def task(work):
    (work / "task.yaml").write_text(TASK)
    return work


def fit(run, *flags, name="run"):
    status, out, err = run("fit", "--config", "task.yaml", "--name", name, *flags)
    assert status == 0, err
    return out


def test_from_training_to_the_list_of_runs(run, task):
    folder = task / "lightning_logs/run"
    out = fit(run)
    assert "32 tokens, 3 of them with a loss" in out
    assert "4 windows: 12 trained tokens at " in out
    assert "llp generate" not in out
    assert "bits per byte" not in out
    record = json.loads((folder / "run.json").read_text())
    assert record["trained_tokens"] == 6 * 4 * 3
    assert record["validations"][-1].keys() == {"step", "complete", "loss", "accuracy"}
    tags = curves(folder)
    assert [step for step, _ in tags["val/accuracy"]] == [step for step, _ in tags["val/loss"]] == [3, 5]
    assert tags["train/tokens"][-1][1] == 72
    assert tags["train/input_tokens"][-1][1] == 6 * 4 * 32

    status, out, err = run("test", "--ckpt_path", folder)
    assert status == 0, err
    assert "Probed for causality" in out
    assert "nan" not in out
    content = json.loads((folder / "test.json").read_text())
    (row,) = content["rows"]
    assert (row["split"], row["labels"]) == ("test", 90)
    assert row["loss"] == pytest.approx(row["nats"] / 90)
    assert row["accuracy"] == row["correct"] / 90
    assert (row["chance_accuracy"], row["chance_loss"]) == (1 / 16, math.log(16))
    bins = content["distances"]
    assert [(one["first"], one["last"]) for one in bins] == [(1, 8), (9, 16), (17, 24), (25, 32)]
    assert sum(one["labels"] for one in bins) == 90
    protocol = content["protocol"]
    assert protocol["complete"] is True
    assert protocol["beyond_reach"]["labels"] > 20  # a reach of 9 to 12
    assert protocol["certificate"]["causal"] is True
    table = [line.split() for line in out.splitlines()]
    assert ["test", "(all)", "LLP", "90", f"{row['accuracy']:.4f}", f"{row['loss']:.4f}"] in table
    assert ["chance", "0.0625", f"{math.log(16):.4f}"] in table
    status, out, err = run("runs")
    assert status == 0, err
    head, _, line = out.splitlines()
    assert head.split("  ")[-1] == "test accuracy"
    assert line.split()[-1] == f"{row['accuracy']:.4f}"
    assert "bits/byte" not in head


def test_a_task_that_was_stopped_goes_on_as_if_nothing_had_been(run, task):
    fit(run, name="whole")
    with pytest.MonkeyPatch.context() as patch:
        at_call(patch, "training_step", 2, lambda: signal.raise_signal(signal.SIGTERM))
        assert run("fit", "--config", "task.yaml", "--name", "stopped")[0] == 143
    status, _, err = run("fit", "--ckpt_path", "last", "--name", "stopped")
    assert status == 0, err
    assert_same_run(task / "lightning_logs/whole", task / "lightning_logs/stopped")
    checkpoint = torch.load(task / "lightning_logs/stopped/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["tokenizer"] is None


def test_a_model_that_reads_beyond_its_word_is_refused(run, task, monkeypatch):
    """It claims to read one token, and knows all labels: of 15, all but the first have their source further back."""
    fit(run, "--model", "llp.Transformer", *COPY, "--trainer.max_steps", 1)
    update = LabelScore.update

    def knowing(self, logits, batch):
        update(self, one_hot(batch.labels, 32).double(), batch)

    monkeypatch.setattr(LabelScore, "update", knowing)
    monkeypatch.setattr(Geometry, "context_lens", lambda self, n: torch.ones(n).long())
    outcome = run("test", "--ckpt_path", "lightning_logs/run")
    assert_one_message(outcome, "model = its reach: 420 of 420 labels whose source lies beyond its reach are correct")
    assert not (task / "lightning_logs/run/test.json").exists()


def test_what_needs_a_text_is_refused(run, task):
    fit(run)
    for subcommand, message in (
        ("predict", "data = AssociativeRecall: it has no text, and `llp predict` writes the loss of each token"),
        ("context", "data = AssociativeRecall: it has no text whose tokens could be scored"),
        ("generate", "ckpt_path = lightning_logs/run/checkpoints/best.ckpt: the model has no tokenizer"),
    ):
        assert_one_message(run(subcommand, "--ckpt_path", "lightning_logs/run"), message)
    status, out, err = run("prepare", "--config", "task.yaml")
    assert status == 0, err
    assert out == "AssociativeRecall: nothing to prepare, its windows are drawn when they are needed\n"
