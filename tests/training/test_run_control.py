"""When a run validates, what each batch is seeded with, and a start from another run's weights."""

import json
from itertools import product
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import llp
from datamodules.loaders import TrainingOrder
from helpers.runs import curves
from llp.checkpoints.reading import sha256
from llp.training.run_control import BatchSeed

# When a run validates


def test_validations_are_in_whole_steps(run, work):
    """Every four batches, where three make a step, becomes every six: after the steps 2, 4 and 6."""
    flags = ("--trainer.accumulate_grad_batches", 3, "--trainer.limit_val_batches", 1)
    assert run("fit", "--config", "tiny.yaml", "--name", "run", *flags)[0] == 0
    assert [step for step, _ in curves(work / "lightning_logs/run")["val/loss"]] == [1, 3, 5]


def test_the_last_step_is_validated_once(run, work):
    """Also if the interval is longer than the run, or a time."""
    for name, interval, steps in (("long", 100, [5]), ("timed", "00:00:02:30", [5])):
        flags = ("--trainer.val_check_interval", interval, "--trainer.limit_val_batches", 1)
        assert run("fit", "--config", "tiny.yaml", "--name", name, *flags)[0] == 0
        assert [step for step, _ in curves(work / f"lightning_logs/{name}")["val/loss"]] == steps


# What a batch is seeded with


def seeded(seed, batch, rank, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
    loop = SimpleNamespace(epoch_loop=SimpleNamespace(total_batch_idx=batch))
    BatchSeed().on_train_batch_start(SimpleNamespace(fit_loop=loop, global_rank=rank), None, None, 0)
    return torch.initial_seed()


def test_each_batch_of_each_rank_and_run_has_its_seed(monkeypatch):
    seeds = {place: seeded(*place, monkeypatch) for place in product(range(3), repeat=3)}
    assert len(set(seeds.values())) == 27
    assert all(seeded(*place, monkeypatch) == value for place, value in seeds.items())
    words = np.random.SeedSequence([2, 1, 0]).generate_state(1, np.uint64)
    assert seeds[2, 1, 0] == int(words[0]) // 2  # as many bits as torch takes without a sign


# A start from another run's weights


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
    model = llp.LLP(**checkpoint["hyper_parameters"])
    model.configure_model()
    model.load_state_dict(origin["state_dict"])
    stream = torch.tensor([10, *(work / "wikitext/wiki.train.tokens").read_bytes()])
    order = TrainingOrder(len(stream), 32, seed=0)
    windows = torch.stack([stream.roll(-order.start(sample))[:33] for sample in range(4)])
    with torch.no_grad():
        loss = model.decoder.loss(windows[:, :-1], windows[:, 1:]).mean.item()
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
    ],
)
def test_weights_that_do_not_fit_are_refused(run, work, finished, flags, message):
    origin = finished / "lightning_logs/run/checkpoints/last.ckpt"
    status, _, err = run("fit", "--config", "tiny.yaml", "--name", "new", "--init_from", origin, *flags)
    assert status == 1
    assert message in err
    assert "Traceback" not in err
    assert not (work / "lightning_logs/new/checkpoints").exists()
