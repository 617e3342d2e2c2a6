"""Models and batches that do not fit: said before the first step where it can be, and in words where it can't."""

import math
import re
from types import SimpleNamespace

import pytest
import torch

from helpers.refusals import assert_one_message
from helpers.small_models import build
from llp.errors import SettingError
from llp.training import memory


def trainer(**settings):
    strategy = SimpleNamespace(root_device=torch.device("cpu"))
    return SimpleNamespace(
        **{"precision": "32-true", "world_size": 1, "num_devices": 1, "strategy": strategy, **settings}
    )


def test_the_bytes_are_those_of_a_step_of_adamw():
    model = build("LLP").float()
    optimizer = torch.optim.AdamW(model.parameters())
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    moments = [moment for state in optimizer.state.values() for name, moment in state.items() if name != "step"]
    tensors = [*model.parameters(), *(parameter.grad for parameter in model.parameters()), *moments]
    expected = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
    assert memory.training_bytes(memory.parameter_count(model), 4, 1) == expected
    assert memory.training_bytes(memory.parameter_count(model), 4, 8) == expected / 8


def test_a_tied_head_counts_once():
    model = build("LLP", tie_embeddings=True)
    assert memory.parameter_count(model) == sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("settings", "factor"),
    [({}, 1.0), ({"precision": "bf16-true"}, 0.5), ({"precision": "bf16-mixed"}, 1.0), ({"num_devices": 2}, 2.0)],
)
def test_a_model_is_refused_where_states_alone_exceed_the_memory(monkeypatch, settings, factor):
    model = build("LLP")
    needed = 16 * factor * sum(parameter.numel() for parameter in model.parameters())
    monkeypatch.setattr(memory, "total_bytes", lambda device: needed)
    memory.check_memory(model, trainer(**settings))
    monkeypatch.setattr(memory, "total_bytes", lambda device: needed - 1)
    with pytest.raises(SettingError, match=r"model.init_args.dim, .* = 16, 3, 19: parameters, .*fsdp2.yaml"):
        memory.check_memory(model, trainer(**settings))


@pytest.mark.parametrize("name", ["LLP", "CompressedAttention"])
def test_of_very_many_layers_few_are_built(monkeypatch, name):
    counts = {n: memory.parameter_count(build(name, n_layers=n)) for n in (3, 5)}
    monkeypatch.setattr(memory, "_MOST_LAYERS", 3)
    model = build(name, n_layers=3)
    assert memory.parameter_count(model) == counts[3]
    model.hparams["n_layers"] = 5
    assert memory.parameter_count(model) == counts[5]
    model.hparams["n_layers"] = 10**9
    with pytest.raises(SettingError, match=r"model.init_args.n_layers, .* = 16, 1000000000, 19: parameters"):
        memory.check_memory(model, trainer())


def test_a_batch_whose_tokens_alone_exceed_the_memory_is_refused(monkeypatch):
    monkeypatch.setattr(memory, "total_bytes", lambda device: 8 * 3 * 7)
    memory.check_batch(SimpleNamespace(batch_size=3, window_len=7))
    with pytest.raises(SettingError, match=r"batch_size, data.init_args.window_len = 4, 7: the tokens of a batch"):
        memory.check_batch(SimpleNamespace(batch_size=4, window_len=7))


def test_a_container_s_limit_counts(monkeypatch, tmp_path):
    limit = tmp_path / "memory.max"
    monkeypatch.setattr(memory, "_CGROUP_LIMITS", (str(limit),))
    installed = memory.total_bytes(torch.device("cpu"))
    limit.write_text("max\n")
    assert memory.total_bytes(torch.device("cpu")) == installed
    limit.write_text("1048576\n")
    assert memory.total_bytes(torch.device("cpu")) == 2**20


@pytest.mark.parametrize(
    ("dim", "need"),
    [(100_000_000, r"3,5\d\d,\d\d\d,\d\d\d\.\d GiB"), (10**10, "more bytes than can"), (10**19, "more bytes")],
)
def test_a_model_beyond_all_memory_is_refused_before_the_text_is_prepared(run, work, dim, need):
    outcome = run("fit", "--config", "tiny.yaml", "--model.init_args.dim", dim)
    assert_one_message(outcome, f"model.init_args.dim, model.init_args.n_layers, model.init_args.vocab_size = {dim}, 2")
    assert re.search(f"AdamW's states need {need}", outcome[2])
    assert {path.name for path in work.iterdir()} == {"tiny.yaml", "wikitext"}


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory"),
        RuntimeError("Storage size calculation overflowed with sizes=[10, 10]"),
        MemoryError(),
    ],
)
def test_memory_that_runs_out_in_a_step_is_one_message_with_what_lowers_it(run, work, monkeypatch, error):
    def exhausted(self, *_):
        raise error

    monkeypatch.setattr("llp.language_model.LanguageModel.training_step", exhausted)
    status, out, err = run("fit", "--config", "tiny.yaml", "--name", "run")
    assert_one_message((status, out, err), "llp fit: error: memory = ")
    for words in (
        str(error),
        "data.init_args.batch_size",
        "accumulate_grad_batches",
        "activation_checkpointing",
        "fsdp2",
    ):
        assert words in err
    assert "No checkpoint has been saved yet." in err


def test_a_real_allocation_that_can_not_be_is_one_message(run, work, monkeypatch):
    monkeypatch.setattr("llp.language_model.LanguageModel.training_step", lambda self, *_: torch.empty(2**60))
    assert_one_message(run("fit", "--config", "tiny.yaml", "--name", "run"), "DefaultCPUAllocator")


def test_other_errors_are_none_of_memory():
    assert memory.exhausted(RuntimeError("shape mismatch")) is None
    assert math.isinf(memory.total_bytes(torch.device("meta")))
