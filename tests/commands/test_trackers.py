"""Loggers beside the run's own: they get its figures and its name, and change nothing about it."""

import csv
import json

import pytest
import yaml

from helpers.recorder import Recorder
from helpers.refusals import assert_one_message
from helpers.runs import TIMED, curves
from llp.commands import trackers

RECORDER = "helpers.recorder.Recorder"
FIT = ("fit", "--config", "tiny.yaml", "--trainer.max_steps", 3, "--trainer.val_check_interval", 2)


@pytest.fixture(autouse=True)
def _known(monkeypatch):
    """The recorder takes the run's name and goes on with a run, as Weights & Biases does."""
    monkeypatch.setitem(trackers._KNOWN, Recorder, trackers._Known("title", "run"))
    monkeypatch.setattr(Recorder, "all", [])


def logger(**settings):
    return ("--config", yaml.safe_dump({"trainer": {"logger": {"class_path": RECORDER, "init_args": settings}}}))


def by_tag(figures):
    """As `curves` has them: {tag: [(step, value), …]} without those that measure time."""
    tags = {}
    for step, values in figures:
        for tag, value in values.items():
            tags.setdefault(tag, []).append((step, float(value)))
    return {tag: values for tag, values in tags.items() if tag not in TIMED}


def test_a_run_with_a_tracker_is_the_run_without_it(run, work):
    assert run(*FIT, "--name", "plain")[0] == 0
    status, out, err = run(*FIT, "--name", "run", *logger())
    assert status == 0, err
    assert "tensorboard --logdir lightning_logs" in out
    plain, folder = work / "lightning_logs/plain", work / "lightning_logs/run"
    files = {path.relative_to(plain) for path in plain.rglob("*") if "tfevents" not in path.name}
    assert {path.relative_to(folder) for path in folder.rglob("*") if "tfevents" not in path.name} == {
        *files, (folder / "trackers.json").relative_to(folder)
    }  # fmt: skip
    assert {path.name for path in work.iterdir()} == {"tiny.yaml", "wikitext", "cache", "lightning_logs"}
    of_plain, of_run = curves(plain), curves(folder)
    assert of_run == of_plain

    (tracker,) = Recorder.all
    assert (tracker.title, tracker.calls[0], tracker.calls[-1]) == ("run", "open", "finalize: success")
    logged = by_tag(tracker.figures)
    assert [step for step, _ in logged["train/loss"]] == [0, 1, 2]
    assert [step for step, _ in logged["val/loss"]] == [1, 2]
    final = {tag for tag in of_run if tag.startswith("final/")}
    assert logged.keys() == of_run.keys() - final
    for tag, values in logged.items():
        assert values == [(step, pytest.approx(value, rel=1e-6)) for step, value in of_run[tag]], tag
    assert tracker.hyperparameters["segment_len"] == 8
