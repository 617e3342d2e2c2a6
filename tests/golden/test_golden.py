"""What version 0.1 wrote and computed: its checkpoint and exported folder open and give the metrics of then.

`best.ckpt` is of a small LLP on the bytes of `text`, trained for 30 steps; `exported` is what `llp export` made of it,
without the files that only other programs read. `metrics.json` and `state_dicts.json` were recorded with the same code.
"""

import json
import math
import platform
import shutil
from pathlib import Path

import pytest

import llp

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]
METRICS = json.loads((FOLDER / "metrics.json").read_text(encoding="utf-8"))
STATE_DICTS = json.loads((FOLDER / "state_dicts.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("name", "settings", "kind"), STATE_DICTS["forms"])
def test_names_and_shapes_of_weights(name, settings, kind):
    """In their order, too: weights are initialized and digested in it."""
    model = getattr(llp, name)(**settings)
    model.configure_model()
    shapes = [(weight_name, list(weight.shape)) for weight_name, weight in model.state_dict().items()]
    assert shapes == list(STATE_DICTS["state_dicts"][kind].items())


@pytest.mark.parametrize("path", ["best.ckpt", "exported"])
def test_a_text_has_the_nats_of_then(path):
    loaded = llp.load(FOLDER / path)
    losses = loaded.token_losses(METRICS["text"])
    assert [one.nats for one in losses] == pytest.approx(METRICS["nats"], rel=1e-5)
    assert "".join(loaded.generate(METRICS["prompt"], max_tokens=40, temperature=0)) == METRICS["continuation"]


@pytest.mark.parametrize("path", ["lightning_logs/golden/checkpoints/best.ckpt", "exported"])
def test_the_test_split_has_the_loss_of_then(run, work, path):
    """With the configuration that the checkpoint holds and nothing else."""
    shutil.copytree(FOLDER / "text", work / "text")
    shutil.copytree(FOLDER / "exported", work / "exported")
    checkpoints = work / "lightning_logs/golden/checkpoints"
    checkpoints.mkdir(parents=True)
    shutil.copy(FOLDER / "best.ckpt", checkpoints)
    status, out, err = run("test", "--ckpt_path", path)
    assert status == 0, err
    assert "WEIGHTS CHANGED" not in out
    report = json.loads((work / path.partition("/checkpoints")[0] / "test.json").read_text())
    assert report["protocol"]["data_fingerprint"] == METRICS["data_fingerprint"]
    assert report["protocol"]["certificate"]["causal"]
    assert len(report["rows"]) == len(METRICS["test"])
    for row, expected in zip(report["rows"], METRICS["test"], strict=True):
        assert row["document"] == expected["document"]
        for name in ("tokens", "words", "bytes", "nats", "unigram_loss"):
            assert math.isclose(row[name], expected[name], rel_tol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(platform.python_version() != "3.11.7", reason="the text is this Python version's documentation")
def test_the_quickstart_gives_the_metrics_of_the_readme(run, work):
    """Three minutes of two cores."""
    own = ("--trainer.enable_progress_bar", "false", "--data.init_args.cache_dir", work / "cache")
    status, _, err = run("fit", "--config", ROOT / "configs/quickstart.yaml", "--name", "quickstart", *own)
    assert status == 0, err
    status, out, err = run("test", "--ckpt_path", "lightning_logs/quickstart/checkpoints/best.ckpt")
    assert status == 0, err
    assert "3.5742" in out
    row = json.loads((work / "lightning_logs/quickstart/test.json").read_text())["rows"][0]
    assert math.isclose(row["loss"], 3.5742, abs_tol=5e-5)
    assert math.isclose(row["bits_per_byte"], 1.9214, abs_tol=5e-5)
