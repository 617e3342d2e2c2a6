"""A new run from another run's weights: they are what it begins with, and all else is its own."""

import json

import pytest
import torch

from helpers.runs import curves
from llp.checkpoints.reading import sha256


@pytest.fixture
def dense(run, work):
    assert run("fit", "--config", "tiny.yaml", "--model", "llp.Transformer", "--name", "dense")[0] == 0
    return work / "lightning_logs/dense/checkpoints/last.ckpt"


def test_dense_weights_start_an_llp(run, work, dense, trained):
    status, _, err = run("fit", "--config", "tiny.yaml", "--name", "new", "--init_from", dense)
    assert status == 0, err
    origin = torch.load(dense, weights_only=True)
    checkpoint = torch.load(work / "lightning_logs/new/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["architecture"] == "llp.LLP"
    expected = {
        "checkpoint": str(dense),
        "checkpoint_sha256": sha256(dense),
        "architecture": "llp.Transformer",
        "step": 6,
    }
    assert checkpoint["initialized_from"] == expected

    # The first loss is that of LLP with these weights on the run's first windows; the schedule begins anew.
    import llp
    from datamodules.loaders import TrainingOrder

    model = llp.LLP(**checkpoint["hyper_parameters"])
    model.configure_model()
    model.load_state_dict(origin["state_dict"])
    stream = torch.tensor([10, *(work / "wikitext/wiki.train.tokens").read_bytes()])
    order = TrainingOrder(len(stream), 32, seed=0)
    windows = torch.stack([stream.roll(-order.start(sample))[:33] for sample in range(4)])
    with torch.no_grad():
        loss = model.decoder(windows[:, :-1], windows[:, 1:]).mean.item()
    new, fresh = (curves(work / "lightning_logs" / name) for name in ("new", "run"))
    assert dict(new["train/loss"])[0] == pytest.approx(loss, rel=1e-5)
    assert dict(fresh["train/loss"])[0] != pytest.approx(loss, rel=1e-3)
    assert new["train/learning_rate"] == fresh["train/learning_rate"]
    assert new["train/tokens"] == fresh["train/tokens"]

    # A resumed run goes on with its own weights, and its reports say where it came from.
    dense.unlink()
    status, _, err = run("fit", "--name", "new", "--ckpt_path", "last", "--trainer.max_steps", 7)
    assert status == 0, err
    resumed = torch.load(work / "lightning_logs/new/checkpoints/last.ckpt", weights_only=True)
    assert resumed["initialized_from"] == expected
    assert run("test", "--name", "new", "--ckpt_path", "best")[0] == 0
    report = json.loads((work / "lightning_logs/new/test.json").read_text())
    assert report["protocol"]["initialized_from"] == expected


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--model.init_args.dim", 32), r"decoder.embed.weight is (257, 16) there and (257, 32) here"),
        (("--model.init_args.n_layers", 1), "decoder.layers.1.attention_norm.weight is (16,) there and None here"),
        (("--model.init_args.n_layers", 3), "decoder.layers.2.attention_norm.weight is None there and (16,) here"),
        (("--init_from", "nowhere.ckpt"), "nowhere.ckpt: there is no such file"),
    ],
)
def test_weights_that_do_not_fit_are_refused(run, work, dense, flags, message):
    status, _, err = run("fit", "--config", "tiny.yaml", "--name", "new", "--init_from", dense, *flags)
    assert status == 1
    assert message in err
    assert "Traceback" not in err
    assert not (work / "lightning_logs/new/checkpoints").exists()
