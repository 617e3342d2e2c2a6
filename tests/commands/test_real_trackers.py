"""Weights & Biases, MLflow and Comet themselves, where they are installed: what is in their files afterwards.

They are no part of the test extra: pip install wandb mlflow comet-ml
"""

import json
import struct
import zipfile
from importlib.util import find_spec

import pytest
import yaml

from helpers.runs import TIMED, curves

FIT = ("fit", "--config", "tiny.yaml", "--name", "run", "--trainer.max_steps", 3, "--trainer.val_check_interval", 2)
RESUME = ("fit", "--name", "run", "--ckpt_path", "last", "--trainer.max_steps", 5)


def with_logger(name, **settings):
    logger = {"class_path": f"lightning.pytorch.loggers.{name}", "init_args": settings}
    return ("--config", yaml.safe_dump({"trainer": {"logger": logger}}))


def fitted_resumed_and_tested(run, logger, close):
    """What a run's trackers see: a start, a resume and a test; `close` ends what lives until the process does."""
    for arguments in ((*FIT, *logger), RESUME, ("test", "--ckpt_path", "lightning_logs/run")):
        status, _, err = run(*arguments)
        close()
        assert status == 0, err
        assert "Traceback" not in err


def assert_has_all(tracked, folder):
    """Each figure of the run's TensorBoard is in the tracker, {tag: {step: value}}, at its step."""
    of_run = {tag: dict(values) for tag, values in curves(folder).items() if not tag.startswith("final/")}
    assert {"train/loss", "train/learning_rate", "val/loss", "val/bits_per_byte"} <= of_run.keys()
    assert sorted(of_run["train/loss"]) == [0, 1, 2, 3, 4]
    for tag, values in of_run.items():
        assert tracked[tag] == {step: pytest.approx(value, rel=1e-6) for step, value in values.items()}, tag
    assert tracked.keys() - of_run.keys() <= TIMED | {"epoch"}
    assert {path.name for path in folder.parent.iterdir()} == {"run"}


def wandb_records(path):
    """The records of a `.wandb` file: a log of blocks of 32 KiB, with a header of 7 bytes before each piece."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, pieces = path.read_bytes(), 7, b""
    while place < len(content):
        left = 32768 - place % 32768
        if left < 7:
            place += left
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)
        pieces += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            record = Record()
            record.ParseFromString(pieces)
            pieces = b""
            yield record


def test_weights_and_biases(run, work, monkeypatch):
    wandb = pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    logger = with_logger("WandbLogger", project="ours", offline=True)
    fitted_resumed_and_tested(run, logger, wandb.finish)
    files = sorted((work / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2  # the start and the resume; none of the test
    tracked, runs, hyperparameters = {}, [], {}
    for file in files:
        for record in wandb_records(file):
            if record.HasField("run"):
                runs.append((record.run.run_id, record.run.display_name, record.run.project))
            updates = record.run.config.update if record.HasField("run") else record.config.update
            hyperparameters |= {item.key: item.value_json for item in updates}
            if record.HasField("history"):
                items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
                step = json.loads(items.pop("trainer/global_step"))
                for tag, value in items.items():
                    if not tag.startswith("_"):
                        tracked.setdefault(tag, {})[step] = json.loads(value)
    (kept,) = json.loads((work / "lightning_logs/run/trackers.json").read_text())
    assert set(runs) == {(kept["run"], "run", "ours")}
    assert json.loads(hyperparameters["segment_len"]) == 8
    assert_has_all(tracked, work / "lightning_logs/run")


def test_mlflow(run, work, monkeypatch):
    pytest.importorskip("mlflow")
    from mlflow.tracking import MlflowClient

    uri = "sqlite:///mlflow.db"
    if find_spec("alembic") is None:  # mlflow-skinny has no databases
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        uri = f"file:{work}/mlruns"
    logger = with_logger("MLFlowLogger", experiment_name="ours", tracking_uri=uri)
    fitted_resumed_and_tested(run, logger, lambda: None)
    client = MlflowClient(uri)
    (tracked_run,) = client.search_runs([client.get_experiment_by_name("ours").experiment_id])
    (kept,) = json.loads((work / "lightning_logs/run/trackers.json").read_text())
    assert (tracked_run.info.run_id, tracked_run.info.run_name) == (kept["run"], "run")
    assert tracked_run.info.status == "FINISHED"
    assert tracked_run.data.params["segment_len"] == "8"
    tracked = {
        tag: {metric.step: metric.value for metric in client.get_metric_history(kept["run"], tag)}
        for tag in tracked_run.data.metrics
    }
    assert_has_all(tracked, work / "lightning_logs/run")


def test_mlflow_that_refuses_its_store_is_one_message(run, work, monkeypatch):
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    status, _, err = run(*FIT, *with_logger("MLFlowLogger", tracking_uri=f"file:{work}/mlruns"))
    assert status == 1
    assert "llp fit: error: trainer.logger = MLFlowLogger: it can't be opened: " in err
    assert "Traceback" not in err
    assert not (work / "lightning_logs/run/checkpoints").exists()


def test_comet(run, work, monkeypatch):
    if (
        find_spec("comet_ml") is None
    ):  # which must not be imported before `llp fit` says that it is not to watch TensorBoard
        pytest.skip("comet_ml is not installed")
    monkeypatch.setenv("COMET_OFFLINE_DIRECTORY", str(work / "comet"))
    monkeypatch.setenv("COMET_START_ONLINE", "")  # what the run itself sets is gone after the test

    def close():
        import comet_ml as comet

        if (experiment := comet.get_running_experiment()) is not None:
            experiment.end()

    fitted_resumed_and_tested(run, with_logger("CometLogger", project="ours", online=False), close)
    archives = sorted((work / "comet").glob("*.zip"), key=lambda path: path.stat().st_mtime)
    assert len(archives) == 2  # the start and the resume; none of the test
    tracked, keys, names, parameters = {}, set(), set(), {}
    for path in archives:
        with zipfile.ZipFile(path) as archive:
            keys.add(json.loads(archive.read("experiment.json"))["offline_id"])
            messages = [json.loads(line)["payload"] for line in archive.read("messages.json").splitlines()]
        for message in messages:
            if (metric := message.get("metric")) and not metric["metricName"].startswith("sys."):
                of_tag = tracked.setdefault(metric["metricName"], {})
                assert metric["step"] not in of_tag, metric  # each once
                of_tag[metric["step"]] = float(metric["metricValue"])
            if parameter := message.get("param"):
                parameters[parameter["paramName"]] = parameter["paramValue"]
            if message.get("key") == "Name":
                names.add(message["value"])
    (kept,) = json.loads((work / "lightning_logs/run/trackers.json").read_text())
    assert (keys, names) == ({kept["run"]}, {"run"})
    assert str(parameters["segment_len"]) == "8"
    assert_has_all(tracked, work / "lightning_logs/run")
