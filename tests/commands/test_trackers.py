"""Loggers beside the run's own: they get its metrics and its name, and change nothing about it."""

import json

import pytest
import torch
import yaml
from jsonargparse import Namespace

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


def by_tag(metrics):
    """As `curves` has them: {tag: [(step, value), …]} without those that measure time."""
    tags = {}
    for step, values in metrics:
        for tag, value in values.items():
            tags.setdefault(tag, []).append((step, float(value)))
    return {tag: values for tag, values in tags.items() if tag not in TIMED}


def test_a_run_with_a_tracker_is_the_run_without_it(run, work):
    assert run(*FIT, "--name", "plain")[0] == 0
    status, _, err = run(*FIT, "--name", "run", *logger())
    assert status == 0, err
    plain, folder = work / "lightning_logs/plain", work / "lightning_logs/run"
    files, with_tracker = (
        {str(path.relative_to(root)) for path in root.rglob("*") if "tfevents" not in path.name}
        for root in (plain, folder)
    )
    assert with_tracker == files | {"trackers.json"}
    of_plain, of_run = curves(plain), curves(folder)
    assert of_run == of_plain

    (tracker,) = Recorder.all
    assert (tracker.title, tracker.calls[0], tracker.calls[-1]) == ("run", "open", "finalize: success")
    logged = by_tag(tracker.metrics)
    assert logged.keys() == {tag for tag in of_run if not tag.startswith("final/")}
    for tag, values in logged.items():
        assert values == [(step, pytest.approx(value, rel=1e-6)) for step, value in of_run[tag]], tag
    assert tracker.hyperparameters["segment_len"] == 8


def test_a_resumed_run_goes_on_in_its_tracker_and_no_test_opens_one(run, work):
    assert run(*FIT, "--name", "run", *logger(label="own"))[0] == 0
    status, _, err = run("fit", "--name", "run", "--ckpt_path", "last", "--trainer.max_steps", 4)
    assert status == 0, err
    assert [tracker.run for tracker in Recorder.all] == ["own-1", "own-1"]
    assert [step for step, _ in by_tag(Recorder.all[1].metrics)["train/loss"]] == [3]
    status, _, err = run("fit", "--name", "other", "--ckpt_path", "lightning_logs/run", "--trainer.max_steps", 5)
    assert status == 0, err
    assert (Recorder.all[2].run, Recorder.all[2].title) == ("own-3", "other")

    best = work / "lightning_logs/run/checkpoints/best.ckpt"
    checkpoint = torch.load(best, weights_only=True)
    checkpoint["config"] = checkpoint["config"].replace(RECORDER, "gone.Recorder")  # it isn't installed here
    torch.save(checkpoint, best)
    for command in ("test", "validate", "predict"):
        status, _, err = run(command, "--ckpt_path", "lightning_logs/run")
        assert status == 0, err
    assert len(Recorder.all) == 3
    status, _, err = run("test", "--ckpt_path", "lightning_logs/run", "--trainer.logger", RECORDER)
    assert status == 0, err
    report = json.loads((work / "lightning_logs/run/test.json").read_text())
    assert by_tag(Recorder.all[3].metrics)["test/loss"] == [(0, pytest.approx(report["rows"][0]["loss"]))]


def test_a_tracker_that_can_not_be_opened_is_one_message_before_any_work(run, work):
    message = "trainer.logger = Recorder: it can't be opened: the network is gone; fix this, or train without it: --tr"
    assert_one_message(run(*FIT, "--name", "run", *logger(fails_in="open")), message)
    assert {path.name for path in work.iterdir()} == {"tiny.yaml", "wikitext", "lightning_logs"}  # no text was prepared


def test_a_missing_package_is_one_message(run, work):
    outcome = run("fit", "--config", "tiny.yaml", "--trainer.logger", "WandbLogger", "--name", "run")
    assert_one_message(outcome, "trainer.logger = WandbLogger: the package wandb is not installed; install it with pip")


def test_what_is_configured_stays_and_the_rest_is_the_run_s(monkeypatch):
    monkeypatch.setattr(trackers, "find_spec", lambda wanted: object())
    path = "lightning.pytorch.loggers.WandbLogger"
    settings = Namespace(class_path=path, init_args=Namespace(name=None, id=None, project="llp"))
    named = trackers.for_run(settings, "run", {path: "abc"})
    assert named.init_args.as_dict() == {"name": "run", "id": "abc", "project": "llp"}
    assert named.dict_kwargs == {"resume": "allow"}  # of wandb's own, which is not installed
    own = Namespace(class_path=path, init_args=Namespace(name="mine", id="mine"), dict_kwargs={"resume": "must"})
    kept = trackers.for_run(own, "run", {path: "abc"})
    assert (kept.init_args.as_dict(), kept.dict_kwargs) == ({"name": "mine", "id": "mine"}, {"resume": "must"})
    assert settings.init_args.name is None
