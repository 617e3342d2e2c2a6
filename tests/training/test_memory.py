"""Memory that runs out in training is one message with its remedies."""

import pytest
import torch

from helpers.refusals import assert_one_message
from llp.language_model import LanguageModel
from llp.training.guards import out_of_memory


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
    ],
)
def test_errors_of_memory_are_recognised_also_as_causes(error, device):
    outer = ValueError("wrapped")
    outer.__cause__ = error
    assert str(out_of_memory(outer)).startswith(f"memory = {device}: it is not enough (")


def test_other_errors_are_not_about_memory():
    assert out_of_memory(RuntimeError("shape mismatch")) is None
