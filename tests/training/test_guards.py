"""What ends a run: steps that are not finite, ranks that stand still, memory that runs out."""

import numpy as np
import pytest
import torch
from torch import nn

from helpers.refusals import assert_one_message
from helpers.runs import curves
from llp.decoder.decoder import Decoder
from llp.decoder.loss import Losses
from llp.language_model import LanguageModel
from llp.training.guards import Ranks, gradient_norm, out_of_memory

# Steps that are not finite


@pytest.fixture
def poisoned(monkeypatch):
    """In the third and the fifth batch the loss of the second window is not a number."""
    original, calls = Decoder.loss, []

    def loss(self, tokens, targets):
        losses = original(self, tokens, targets)
        if self.training:
            calls.append(None)
            if len(calls) in (3, 5):
                broken = torch.tensor([1.0, torch.nan, 1.0, 1.0])[:, None]
                losses = Losses(losses.mean * torch.nan, losses.each * broken)
        return losses

    monkeypatch.setattr(Decoder, "loss", loss)


def test_a_step_that_is_not_finite_ends_the_run(run, work, poisoned):
    flags = ("--name", "run", "--checkpoint.every_n_train_steps", 1)
    status, _, err = run("fit", "--config", "tiny.yaml", *flags)
    assert status == 1
    assert "in optimizer step 3 the loss is nan and the gradient's norm nan" in err
    assert "\n  sample 9: 32 tokens from token" in err  # samples 8 to 11 are the third batch
    assert err.count("\n  sample") == 1
    assert " of train\n" in err
    assert "Resume from step 2 with: llp fit --ckpt_path lightning_logs/run/checkpoints/last.ckpt" in err
    assert "Traceback" not in err


def test_steps_that_are_not_finite_can_be_skipped(run, work, poisoned):
    status, _, err = run("fit", "--config", "tiny.yaml", "--name", "run", "--guard.max_skipped_steps", 2)
    assert status == 0, err
    run_curves = curves(work / "lightning_logs/run")
    assert [value for _, value in run_curves["train/skipped_steps"]] == [0, 0, 1, 1, 2, 2]
    assert [np.isnan(value) for _, value in run_curves["train/loss"]] == [False, False, True, False, True, False]
    weights = torch.load(work / "lightning_logs/run/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(weight.isfinite().all() for weight in weights.values())


def module_with_gradients():
    module = nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 2))
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    module[0].weight.grad = torch.tensor([[3.0, 4.0]])
    module[1].weight.grad = torch.tensor([[-12.0], [0.0]])
    module[1].bias.grad = None
    return module


def test_the_norm_is_that_of_all_gradients():
    assert gradient_norm(module_with_gradients()).item() == pytest.approx(13)  # sqrt(9 + 16 + 144)


# Ranks that stand still: what rank 0 concludes


@pytest.mark.parametrize(
    ("world_size", "periods", "expected"),
    [
        (2, [{}] * 3, "no rank made progress for 30 s"),
        # The ranks that have moved least are waited for.
        (4, [{"moved": [0, 1, 2, 3]}, {"moved": [0, 2]}, {}, {}, {}], "rank 1, rank 3 made no progress for 30 s"),
        (3, [{"moved": [0, 1]}, {}, {}, {}], "rank 2 made no progress for 30 s while the others waited"),
        # Silent for more than half of the time comes first, even if another rank has moved less.
        (3, [{"moved": [1, 2]}, {}, {"silent": [2]}, {"silent": [2]}], "rank 2 did not respond for 30 s while the"),
        (3, [{"moved": [1, 2]}, *[{"silent": [1, 2]}] * 3], "rank 1, rank 2 did not respond for 30 s"),
        (2, [{"moved": [0]}, {"silent": [0]}, {"silent": [0]}, {}], "rank 1 made no progress for 30 s"),
    ],
)
def test_who_is_waited_for(world_size, periods, expected):
    """Ranks that each report once a period how often they have moved, with a new clock reading unless silent."""
    ranks, messages = Ranks(world_size, period_s=10.0), [(0, 0)] * world_size
    for period in periods:
        moved, silent = period.get("moved", []), period.get("silent", [])
        messages = [
            (moves + (rank in moved), clock + (rank not in silent)) for rank, (moves, clock) in enumerate(messages)
        ]
        ranks.update(messages)
    assert ranks.stalled(timeout_s=30.0).startswith(expected)


# Memory


def test_a_real_allocation_that_fails_in_a_step_is_one_message(run, work, monkeypatch):
    monkeypatch.setattr(LanguageModel, "training_step", lambda self, *_: torch.empty(2**60))
    outcome = run("fit", "--config", "tiny.yaml", "--name", "run")
    assert_one_message(outcome, "llp fit: error: memory = CPU: it is not enough (")
    for words in ("DefaultCPUAllocator", "batch_size", "accumulate_grad_batches", "activation_checkpointing", "fsdp2"):
        assert words in outcome[2]
    assert "No checkpoint has been saved yet." in outcome[2]


@pytest.mark.parametrize(
    ("error", "device"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), "GPU"),
        (RuntimeError("Storage size calculation overflowed with sizes=[10, 10]"), "CPU"),
        (MemoryError(), "CPU"),
        (RuntimeError("shape mismatch"), None),
    ],
)
def test_errors_of_memory_are_recognised_also_as_causes(error, device):
    outer = ValueError("wrapped")
    outer.__cause__ = error
    found = out_of_memory(outer)
    assert found is None if device is None else str(found).startswith(f"memory = {device}: it is not enough (")
