"""Recall that is really learnt: all of it by a dense model, and not a bit of it from beyond LLP's reach."""

import math

import pytest
import torch
from lightning.pytorch import Trainer, seed_everything

import llp
from datamodules import AssociativeRecall

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("name", "own"), [("Transformer", {}), ("LLP", {"segment_len": 3})])
def test_a_small_model_learns_what_it_can_see(tmp_path, name, own):
    """Two pairs in 16 tokens: two layers of LLP read back 7 to 9 tokens. Eight values, one of them the other pair's."""
    seed_everything(0)
    data = AssociativeRecall(vocab_size=16, n_pairs=2, window_len=16, batch_size=128, n_test=1000, distance_bin=2)
    settings = {"dim": 32, "n_layers": 2, "n_heads": 2, "learning_rate": 3e-3, "warmup_steps": 50}
    model = getattr(llp, name)(16, **settings, **own)
    trainer = Trainer(
        max_steps=600, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, use_distributed_sampler=False, limit_val_batches=0, gradient_clip_val=1.0,
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(model, data)
    trainer.test(model, data, verbose=False)
    labels, correct, nats = (state.sum(dim=1) for state in model.score.compute())  # within reach, and beyond
    accuracy, loss = correct / labels, nats / labels
    if name == "Transformer":
        assert labels.tolist() == [2000, 0]
        assert accuracy[0] > 0.99
        return
    assert labels[1] > 500
    assert accuracy[0] > 0.4
    assert abs(accuracy[1] - 1 / 8) < 4 * math.sqrt(7 / 64 / labels[1])
    assert loss[1] > math.log(7)
    assert torch.isfinite(loss).all()
