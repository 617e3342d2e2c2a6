"""Loggers beside the run's own: they get its figures and its name, and change nothing about it."""

import csv
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


def test_a_resumed_run_goes_on_in_its_tracker_and_no_test_opens_one(run, work):
    assert run(*FIT, "--name", "run", *logger(label="own"))[0] == 0
    status, _, err = run("fit", "--name", "run", "--ckpt_path", "last", "--trainer.max_steps", 4)
    assert status == 0, err
    assert [tracker.run for tracker in Recorder.all] == ["own-1", "own-1"]
    assert [step for step, _ in by_tag(Recorder.all[1].figures)["train/loss"]] == [3]
    status, _, err = run("fit", "--name", "other", "--ckpt_path", "lightning_logs/run", "--trainer.max_steps", 5)
    assert status == 0, err
    assert (Recorder.all[2].run, Recorder.all[2].title) == ("own-3", "other")

    best = work / "lightning_logs/run/checkpoints/best.ckpt"
    checkpoint = torch.load(best, weights_only=True)
    checkpoint["config"] = checkpoint["config"].replace(RECORDER, "gone.Recorder")  # it isn't installed here
    torch.save(checkpoint, best)
    for subcommand in ("test", "validate", "predict"):
        status, _, err = run(subcommand, "--ckpt_path", "lightning_logs/run", *logger(label="of a file"))
        assert status == 0, err
    assert len(Recorder.all) == 3
    status, _, err = run("test", "--ckpt_path", "lightning_logs/run", "--trainer.logger", RECORDER)
    assert status == 0, err
    report = json.loads((work / "lightning_logs/run/test.json").read_text())
    logged = by_tag(Recorder.all[3].figures)
    assert logged["test/loss"] == [(0, pytest.approx(report["rows"][0]["loss"]))]
    assert {path.name for path in (work / "lightning_logs").iterdir()} == {"run", "other"}


def test_a_tracker_that_fails_ends_no_run(run, work):
    with pytest.warns(
        UserWarning, match="Recorder has failed and gets no more figures; training goes on.*: the network is gone"
    ):
        status, _, err = run(*FIT, "--name", "run", *logger(fails_in="log_metrics"))
    assert status == 0, err
    (tracker,) = Recorder.all
    assert tracker.calls.count("log_metrics") == 1  # then it is left alone
    assert tracker.calls[-1] == "log_metrics"
    assert [step for step, _ in curves(work / "lightning_logs/run")["val/loss"]] == [1, 2]
    record = json.loads((work / "lightning_logs/run/run.json").read_text())
    assert (record["state"], record["step"]) == ("finished", 3)
    assert (work / "lightning_logs/run/checkpoints/last.ckpt").is_file()


@pytest.mark.parametrize("method", ["log_metrics", "save", "finalize: failed"])
def test_every_method_of_a_tracker_may_fail(method):
    tracker = Recorder(fails_in=method)
    trackers.FailureIsolation(tracker)

    def log():
        tracker.log_metrics({"loss": 1.0}, 0)
        tracker.save()
        tracker.finalize("failed")

    with pytest.warns(UserWarning, match="Recorder has failed and gets no more figures.*: the network is gone"):
        log()
    assert tracker.calls == ["log_metrics", "save", "finalize: failed"][: len(tracker.calls)]
    assert tracker.calls[-1] == method


def test_figures_come_after_hyperparameters_that_were_refused():
    tracker = Recorder(fails_in="log_hyperparams")
    trackers.FailureIsolation(tracker)
    with pytest.warns(UserWarning, match="Recorder doesn't take these settings: the network is gone"):
        tracker.log_hyperparams({"dim": 16})
    tracker.log_metrics({"loss": 1.0}, 0)
    assert tracker.figures == [(0, {"loss": 1.0})]


def test_a_tracker_that_can_not_be_opened_is_one_message_before_any_work(run, work):
    message = "trainer.logger = Recorder: it can't be opened: the network is gone; mend this, or train without it: --tr"
    assert_one_message(run(*FIT, "--name", "run", *logger(fails_in="open")), message)
    assert not list((work / "lightning_logs").glob("run/*"))
    assert {path.name for path in work.iterdir()} == {"tiny.yaml", "wikitext", "lightning_logs"}  # no text was prepared


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [("WandbLogger", "wandb", "wandb"), ("MLFlowLogger", "mlflow", "mlflow"), ("CometLogger", "comet_ml", "comet-ml")],
)
def test_a_missing_package_is_one_message_with_the_command(run, work, monkeypatch, name, module, package):
    monkeypatch.setattr(trackers, "find_spec", lambda wanted: None if wanted == module else object())
    outcome = run(*FIT, "--name", "run", "--trainer.logger", name)
    assert_one_message(
        outcome, f"trainer.logger = {name}: the package {package} is not installed; run: pip install {package}"
    )
    assert {path.name for path in work.iterdir()} == {"tiny.yaml", "wikitext"}


def test_a_run_that_is_refused_opens_no_tracker(run, work):
    outcome = run(*FIT, "--name", "run", *logger(), "--model.init_args.dim", 15)
    assert_one_message(outcome, "dim = 15")
    (work / "lightning_logs/run").mkdir(parents=True)
    (work / "lightning_logs/run/hparams.yaml").write_text("{}")
    assert_one_message(run(*FIT, "--name", "run", *logger()), "lightning_logs/run holds a run already")
    assert Recorder.all == []


def test_several_loggers_of_which_csv_s_lies_in_the_run_s_folder(run, work):
    """Its table has the figures of TensorBoard, and what a callback logs; a resumed run keeps that of before."""
    csv_logger = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "."}}
    trainer = {"logger": [{"class_path": RECORDER}, csv_logger], "default_root_dir": "elsewhere"}
    trainer["callbacks"] = "lightning.pytorch.callbacks.LearningRateMonitor"
    (work / "loggers.yaml").write_text(yaml.safe_dump({"trainer": trainer}))
    status, _, err = run(*FIT, "--name", "run", "--config", "loggers.yaml")
    assert status == 0, err
    folder = work / "elsewhere/lightning_logs/run"
    of_run, tabulated = curves(folder), by_tag(table(folder / "metrics.csv"))
    assert tabulated.keys() == {tag for tag in of_run if not tag.startswith("final/")}
    assert any("lr-" in tag for tag in of_run)
    for tag, values in tabulated.items():
        assert values == [(step, pytest.approx(value, rel=1e-6)) for step, value in of_run[tag]], tag
    assert by_tag(Recorder.all[0].figures).keys() == tabulated.keys()

    before = (folder / "metrics.csv").read_bytes()
    status, _, err = run("fit", "--ckpt_path", folder, "--trainer.max_steps", 4)
    assert status == 0, err
    assert "Previous log files" not in err
    assert (folder / "metrics-1.csv").read_bytes() == before
    assert [step for step, _ in by_tag(table(folder / "metrics.csv"))["train/loss"]] == [3]
    assert not (work / "lightning_logs").exists()
    kept = yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["logger"]
    assert [one["init_args"] for one in kept] == [{}, {"save_dir": "."}]  # without what they are anyway


def test_a_tensorboard_of_the_user_s_is_the_run_s(run, work):
    own = ("--trainer.logger", "TensorBoardLogger", "--trainer.logger.save_dir", "own")
    status, _, err = run("fit", "--config", "tiny.yaml", "--name", "run", *own, "--trainer.max_steps", 1)
    assert status == 0, err
    assert (work / "own/lightning_logs/run/checkpoints/last.ckpt").is_file()
    assert len(list(work.rglob("*tfevents*"))) == 1


def test_a_tracker_that_is_left_out_once_is_gone_on_with_later(tmp_path):
    def names_of(*labels):
        init_args = [Namespace(label=label, title=None, run=None, fails_in="") for label in labels]
        loggers = [Namespace(class_path=RECORDER, init_args=one) for one in init_args]
        return [(tracker.run, tracker.title) for tracker in trackers.open_trackers(loggers, tmp_path)]

    name = tmp_path.name
    assert names_of("a", "b") == [("a-1", name), ("b-2", name)]
    assert names_of("a") == [("a-1", name)]
    assert names_of("a", "b") == [("a-1", name), ("b-2", name)]


def table(path):
    """The rows of a table of figures: (step, figures) each."""
    with path.open(newline="") as stream:
        rows = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(stream)]
    return [(row.pop("step"), row) for row in rows]
