"""What a run logs of its steps, by hand and on a clock that is set."""

import math
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import llp
from datamodules.loaders import TextWindows
from llp.language_model import LanguageModel
from llp.training import metrics
from llp.training.metrics import RunMetrics, log_step


class Job:
    """Two ranks' trainer, model and clock; figures are logged every second optimizer step."""

    def __init__(self, monkeypatch):
        self.now, self.logged, self.shown, self.peaks = 100.0, [], [], []
        self.accumulates = False
        monkeypatch.setattr(metrics, "time", SimpleNamespace(perf_counter=lambda: self.now))
        monkeypatch.setattr(metrics, "peak_rate", lambda *of: (self.peaks.append(of), SimpleNamespace(flops=1000.0))[1])
        logger = SimpleNamespace(log_metrics=lambda figures, step: self.logged.append((figures, step)))
        self.trainer = SimpleNamespace(
            world_size=2,
            precision="bf16-mixed",
            log_every_n_steps=2,
            global_step=0,
            loggers=[logger, logger],
            fit_loop=SimpleNamespace(_should_accumulate=lambda: self.accumulates),
            train_dataloader=SimpleNamespace(seconds=1.0),
            state=SimpleNamespace(fn=TrainerFn.FITTING),
            sanity_checking=False,
        )
        self.model = SimpleNamespace(
            device=torch.device("cpu"), log=lambda *args, **kwargs: self.shown.append((args, kwargs))
        )
        self.callback = RunMetrics()

    def start(self):
        self.callback.on_train_start(self.trainer, self.model)

    def batch(self, until, waited, loss, rate, accumulates=False):
        """One that ends at `until`: 10 trained of 16 tokens and 500 FLOPs on each rank."""
        self.now, self.accumulates = until, accumulates
        self.trainer.train_dataloader.seconds += waited
        self.model.step_loss = torch.tensor(loss)
        if not accumulates:
            optimizer = SimpleNamespace(param_groups=[{"lr": rate}, {"lr": 77.0}])
            self.callback.on_before_optimizer_step(self.trainer, self.model, optimizer)
            self.trainer.global_step += 1
        outputs = {"trained_tokens": 10, "input_tokens": 16, "flops": 500}
        self.callback.on_train_batch_end(self.trainer, self.model, outputs, None, 0)

    def validate(self, start, end):
        self.now = start
        self.callback.on_validation_start(self.trainer, self.model)
        self.now = end
        self.callback.on_validation_end(self.trainer, self.model)


def test_figures_of_logged_steps(monkeypatch):
    job = Job(monkeypatch)
    job.start()
    assert job.peaks == [(torch.device("cpu"), torch.bfloat16)]
    job.batch(103.0, 0.5, loss=4.0, rate=0.1)
    assert job.logged == []
    job.validate(104.0, 114.0)  # the ten seconds are not training's
    job.batch(116.0, 1.0, loss=3.0, rate=0.2)  # 3 + 1 + 2 s
    figures = {
        "train/loss": 3.0,
        "train/learning_rate": 0.2,
        "train/tokens": 40.0,  # 10 a rank and batch
        "train/input_tokens": 64.0,
        "train/tokens_per_second": pytest.approx(40 / 6),
        "train/mfu": pytest.approx(2000 / 6 / 2000),  # two ranks compute at most 1000 each
        "train/data_wait": pytest.approx(1.5 / 6),
    }
    assert job.logged == [(figures, 1)] * 2  # the second step, counted from 0, to each logger
    assert all(type(value) is float for value in job.logged[0][0].values())
    shown = (("tokens/s", pytest.approx(40 / 6)), {"prog_bar": True, "logger": False})
    assert job.shown[-1] == shown

    # The next two steps, the first of two batches; rates are those since the last figures.
    job.batch(117.0, 0.0, loss=math.nan, rate=0.0, accumulates=True)  # `global_step` is still 2
    job.batch(118.0, 0.25, loss=2.0, rate=0.3)
    assert len(job.logged) == 2
    job.batch(120.0, 0.25, loss=1.0, rate=0.4)
    figures = {
        "train/loss": 1.0,
        "train/learning_rate": pytest.approx(0.4),
        "train/tokens": 100.0,
        "train/input_tokens": 160.0,
        "train/tokens_per_second": 60 / 4,
        "train/mfu": 3000 / 4 / 2000,
        "train/data_wait": 0.5 / 4,
    }
    assert job.logged[2:] == [(figures, 3)] * 2


def test_counts_go_on_in_a_resumed_run_and_rates_do_not(monkeypatch):
    job = Job(monkeypatch)
    assert job.callback.state_dict() == {"tokens": 0, "input_tokens": 0, "seconds": 0.0}
    job.callback.load_state_dict({"tokens": 1000, "input_tokens": 2000, "seconds": 50.0})
    job.start()
    job.batch(101.0, 0.0, loss=1.0, rate=0.1)
    job.batch(104.0, 0.0, loss=1.0, rate=0.1)
    (figures, _), _ = job.logged
    assert (figures["train/tokens"], figures["train/input_tokens"]) == (1040, 2064)
    assert figures["train/tokens_per_second"] == 40 / 4
    assert job.callback.state_dict() == {"tokens": 1040, "input_tokens": 2064, "seconds": 54.0}


def test_a_validation_that_is_none_of_training_is_not_counted(monkeypatch):
    job = Job(monkeypatch)
    job.start()
    job.trainer.sanity_checking = True
    job.validate(103.0, 105.0)
    job.trainer.sanity_checking = False
    job.trainer.state.fn = TrainerFn.VALIDATING
    job.validate(109.0, 110.0)
    assert job.callback.seconds == 0
    job.batch(112.0, 0.0, loss=1.0, rate=0.1)
    assert job.callback.seconds == 2


def test_a_loader_that_does_not_know_leaves_the_wait_open(monkeypatch):
    job = Job(monkeypatch)
    job.trainer.train_dataloader = object()
    job.callback.on_train_start(job.trainer, job.model)
    job.trainer.train_dataloader = SimpleNamespace(seconds=3.0)
    job.batch(101.0, 0.0, loss=1.0, rate=0.1)
    job.batch(102.0, 0.0, loss=1.0, rate=0.1)
    assert math.isnan(job.logged[0][0]["train/data_wait"])


def test_steps_that_are_logged():
    logged = []
    logger = SimpleNamespace(log_metrics=lambda figures, step: logged.append((figures, step)))
    trainer = SimpleNamespace(log_every_n_steps=3, loggers=[logger])
    for step in range(1, 8):
        log_step(trainer, {"a": torch.tensor(step)}, step)
    assert logged == [({"train/a": 3.0}, 2), ({"train/a": 6.0}, 5)]


def test_an_mfu_above_1_is_left_out(monkeypatch):
    """The peak rate of the device was measured wrong; everything else is logged."""
    job = Job(monkeypatch)
    job.start()
    for until in (100.1, 100.2):  # 2000 FLOPs in 0.2 s, where 2000 a second are the peak
        job.batch(until, 0.0, loss=1.0, rate=0.1)
    ((logged, _), _) = job.logged
    assert "train/mfu" not in logged
    assert logged["train/tokens_per_second"] == pytest.approx(200)


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
