"""A run by a clock of our own: tokens per second, MFU and waiting, between logged steps and without validation."""

from types import SimpleNamespace

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import llp
from datamodules.loaders import TextWindows
from helpers.runs import curves
from llp.language_model import LanguageModel

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
    monkeypatch.setattr("llp.training.metrics.peak_rate", lambda device, dtype: SimpleNamespace(flops=1e9))
    return clock


@pytest.mark.parametrize(("accumulated", "every"), [(1, 1), (1, 2), (2, 3)])
def test_rates_by_hand(run, work, clock, accumulated, every):
    """Each batch of 128 tokens takes 4 s, 1 s of it waiting, however many make a step or an interval."""
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


def test_a_resumed_run_counts_on(run, work, clock):
    """Its tokens are those of the whole run, its rates those of its own time."""
    assert run("fit", "--config", "tiny.yaml", "--name", "run", "--trainer.max_steps", 2)[0] == 0
    clock.now += 10_000
    status, _, err = run("fit", "--ckpt_path", "last", "--name", "run", "--trainer.max_steps", 4)
    assert status == 0, err
    events = EventAccumulator(str(work / "lightning_logs/run"))
    events.Reload()
    assert [event.value for event in events.Scalars("train/tokens")] == [TOKENS * step for step in (1, 2, 3, 4)]
    assert [event.value for event in events.Scalars("train/tokens_per_second")] == [TOKENS / 4] * 4


def test_validations_are_in_whole_steps(run, work):
    """Every four batches, where three make a step, becomes every six: after the steps 2, 4 and 6."""
    flags = ("--trainer.accumulate_grad_batches", 3, "--trainer.limit_val_batches", 1)
    assert run("fit", "--config", "tiny.yaml", "--name", "run", *flags)[0] == 0
    assert [step for step, _ in curves(work / "lightning_logs/run")["val/loss"]] == [1, 3, 5]


def test_the_last_step_is_validated_once(run, work):
    """Also where the interval ends with it, and where it is longer than the run."""
    for interval, steps in ((3, [2, 5]), (100, [5])):
        flags = ("--trainer.val_check_interval", interval, "--trainer.limit_val_batches", 1)
        assert run("fit", "--config", "tiny.yaml", "--name", f"run{interval}", *flags)[0] == 0
        assert [step for step, _ in curves(work / f"lightning_logs/run{interval}")["val/loss"]] == steps
