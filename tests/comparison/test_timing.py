"""Seconds of a step: medians over rounds in which all arms take turns, and steps that really train."""

from types import SimpleNamespace

import torch
from lightning.fabric import Fabric

from llp import LLP
from llp.comparison import timing
from llp.comparison.timing import timed, training_step


def test_medians_of_turns(monkeypatch):
    clock, calls = SimpleNamespace(now=0.0), []
    durations = {"slow": iter([9, 5, 3, 4]), "fast": iter([9, 1, 1, 7])}  # the first one warms up

    def step(arm):
        calls.append(arm)
        clock.now += next(durations[arm])

    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: clock.now))
    found = timed({"slow": lambda: step("slow"), "fast": lambda: step("fast")}, rounds=3, device="cpu")
    assert found.seconds_per_step == {"slow": 4, "fast": 1}
    assert calls == 4 * ["slow", "fast"]


def test_a_step_trains_on_all_of_its_batches():
    built = []

    class Noted(LLP):
        def configure_model(self):
            super().configure_model()
            built.append(self.decoder)

    model = Noted(19, dim=16, n_layers=2, n_heads=2, segment_len=4)
    step = training_step(model, (2, 9), 8, 3, Fabric(accelerator="cpu", devices=1))
    weights, backward = built[0].head.weight, []
    before = weights.detach().clone()
    weights.register_hook(lambda grad: backward.append(grad.shape))
    step()
    assert len(backward) == 3
    assert not torch.equal(weights, before)
    assert weights.grad is None
