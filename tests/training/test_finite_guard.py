"""Steps whose loss is not finite: the run ends and says where, or leaves them out. Stalls: `test_distributed.py`."""

import numpy as np
import pytest
import torch

from helpers.runs import curves
from llp.decoder.decoder import Decoder
from llp.decoder.loss import Losses

EVERY = ("--checkpoint.every_n_train_steps", 1)


@pytest.fixture
def poisoned(monkeypatch):
    """From the third batch on the loss of its second window is not a number."""
    original, calls = Decoder.forward, []

    def forward(self, tokens, targets=None):
        losses = original(self, tokens, targets)
        if self.training:
            calls.append(None)
            if len(calls) in (3, 5):
                broken = torch.tensor([1.0, torch.nan, 1.0, 1.0])[:, None]
                losses = Losses(losses.mean * torch.nan, losses.each * broken)
        return losses

    monkeypatch.setattr(Decoder, "forward", forward)


def test_a_step_that_is_not_finite_ends_the_run(run, work, poisoned):
    status, _, err = run("fit", "--config", "tiny.yaml", "--name", "run", *EVERY)
    assert status == 1
    assert "in optimizer step 3 the loss is nan and the gradient's norm nan" in err
    # Samples 8 .. 11 are the third batch; the second of them is broken.
    assert "\n  sample 9: 32 tokens from token" in err
    assert err.count("\n  sample") == 1
    assert " of train\n" in err
    assert "Resume from step 2 with: llp fit --ckpt_path lightning_logs/run/checkpoints/last.ckpt" in err
    assert "Traceback" not in err


def test_steps_that_are_not_finite_can_be_left_out(run, work, poisoned):
    status, _, err = run("fit", "--config", "tiny.yaml", "--name", "run", *EVERY, "--guard.max_skipped_steps", 2)
    assert status == 0, err
    run_curves = curves(work / "lightning_logs/run")
    assert [value for _, value in run_curves["train/skipped_steps"]] == [0, 0, 1, 1, 2, 2]
    assert [np.isnan(value) for _, value in run_curves["train/loss"]] == [False, False, True, False, True, False]
    weights = torch.load(work / "lightning_logs/run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(weight.isfinite().all() for weight in weights.values())


def test_too_many_steps_left_out_end_the_run(run, work, poisoned):
    status, _, err = run("fit", "--config", "tiny.yaml", "--name", "run", "--guard.max_skipped_steps", 1)
    assert status == 1
    assert "guard.max_skipped_steps = 1: in optimizer step 5" in err
