"""Seconds of a step: medians over rounds in which all arms take turns, and steps that really train."""

from types import SimpleNamespace

import torch

from llp.comparison import timing
from llp.comparison.timing import timed, training_step


def test_medians_of_turns(monkeypatch):
    clock, calls = SimpleNamespace(now=0.0), []
    durations = {"slow": iter([9, 5, 3, 4]), "fast": iter([9, 1, 1, 7])}  # the first one warms up

    def make(arm):
        def step():
            calls.append(arm)
            clock.now += next(durations[arm])

        return lambda: step

    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    found = timed({"slow": make("slow"), "fast": make("fast")}, rounds=3, device="cpu")
    assert found.seconds_per_step == {"slow": 4, "fast": 1}
    assert calls == 4 * ["slow", "fast"]


def test_a_step_trains_on_all_of_its_batches(monkeypatch):
    built, backward = [], []
    original = timing.import_class("llp.LLP")

    def building(**arguments):
        built.append(original(**arguments))
        return built[-1]

    monkeypatch.setattr(timing, "import_class", lambda path: building)
    arguments = {"vocab_size": 19, "dim": 16, "n_layers": 2, "n_heads": 2, "segment_len": 4}
    step = training_step("llp.LLP", arguments, 2, 0, 8, 3, "cpu", "32-true")
    weights = built[0].decoder.head.weight
    before = weights.detach().clone()
    weights.register_hook(lambda grad: backward.append(grad.shape))
    step()
    assert len(backward) == 3
    assert not torch.equal(weights, before)
    assert weights.grad is None
