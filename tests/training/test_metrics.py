"""What a run logs of its steps, on a clock that is set."""

import math
from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import llp
from datamodules.loaders import TextWindows
from llp.language_model import LanguageModel
from llp.training.metrics import total_steps

TOKENS = 4 * 32  # of a batch


@pytest.fixture
def clock(monkeypatch):
    """A batch takes 1 s to make and 3 s to train, a batch of validation 1,000 s."""
    clock = SimpleNamespace(now=50.0)
    for module in ("llp.training.metrics", "datamodules.loaders"):
        monkeypatch.setattr(f"{module}.time", SimpleNamespace(perf_counter=lambda: clock.now))

    def slow(owner, name, seconds):
        original = getattr(owner, name)

        def call(self, *args):
            clock.now += seconds
            return original(self, *args)

        monkeypatch.setattr(owner, name, call)

    slow(TextWindows, "_tokens", 0.25)
    slow(LanguageModel, "training_step", 3)
    slow(LanguageModel, "validation_step", 1000)
    monkeypatch.setattr("llp.training.metrics.peak_rate", lambda device, dtype: 1e9)
    return clock


def test_rates_of_a_run(run, work, clock):
    """Each batch of 128 tokens takes 4 s, 1 s of it waiting, however many make a step or an interval."""
    accumulated, every = 2, 3
    flags = ("--trainer.accumulate_grad_batches", accumulated, "--trainer.log_every_n_steps", every)
    status, _, err = run("fit", "--config", "tiny.yaml", "--name", "run", *flags)
    assert status == 0, err
    assert clock.now > 2000  # there was validation
    model = llp.LLP(257, dim=16, n_layers=2, n_heads=2, segment_len=8)  # that of `tiny.yaml`
    model.configure_model()
    steps = range(every - 1, 6, every)
    expected = {
        "tokens": [(step + 1) * accumulated * TOKENS for step in steps],
        "tokens_per_second": [TOKENS / 4] * len(steps),
        "mfu": [pytest.approx(3 * 4 * model.decoder.flops(32) / 4 / 1e9, rel=1e-6)] * len(steps),
        "data_wait": [0.25] * len(steps),
    }
    events = EventAccumulator(str(work / "lightning_logs/run"))
    events.Reload()
    for tag, values in expected.items():
        logged = [(event.step, event.value) for event in events.Scalars(f"train/{tag}")]
        assert logged == [*zip(steps, values, strict=True)], tag


@pytest.mark.parametrize(("estimated", "total"), [(6.0, 6), (math.inf, None), (0, None)])
def test_a_run_may_have_no_last_step(estimated, total):
    assert total_steps(SimpleNamespace(estimated_stepping_batches=estimated)) == total
