"""What ends a run: steps that are not finite, ranks that stand still, memory that runs out."""

import math
import signal
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from helpers.refusals import assert_one_message
from helpers.runs import curves
from llp.checkpoints.callback import RunCheckpoint
from llp.decoder.decoder import Decoder
from llp.decoder.loss import Losses
from llp.errors import SettingError
from llp.language_model import LanguageModel
from llp.training.guards import FiniteGuard, Ranks, StallGuard, gradient_norm, out_of_memory

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


@pytest.mark.parametrize("allowed", [1, 2])
def test_steps_that_are_not_finite_can_be_skipped(run, work, poisoned, allowed):
    flags = ("--name", "run", "--guard.max_skipped_steps", allowed)
    status, _, err = run("fit", "--config", "tiny.yaml", *flags)
    if allowed == 1:
        assert status == 1
        assert "guard.max_skipped_steps = 1: in optimizer step 5" in err
        return
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


def trainer_of(world_size=1, accumulated=1, **more):
    data = SimpleNamespace(describe_samples=lambda n: [f"window {number}" for number in range(n)])
    settings = {"global_step": 6, "datamodule": data, "world_size": world_size, "accumulate_grad_batches": accumulated}
    return SimpleNamespace(**settings, **more)


def step(guard, loss, norm_factor=1.0, scaler=None):
    """One call before an optimizer step; what was logged, and whether the gradients were dropped."""
    module, logged = module_with_gradients(), []
    module[0].weight.grad *= norm_factor
    module.step_loss, module.all_gather = torch.tensor(loss), lambda losses: losses
    module.window_losses = [torch.tensor([loss, 1.0])]
    loggers = [SimpleNamespace(log_metrics=lambda metrics, step: logged.append((metrics, step)))]
    plugin = SimpleNamespace(scaler=scaler)
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    trainer = trainer_of(precision_plugin=plugin, log_every_n_steps=1, loggers=loggers)
    guard.on_before_optimizer_step(trainer, module, optimizer)
    return logged, module[0].weight.grad is None


@pytest.mark.parametrize(("loss", "factor"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)])
def test_steps_are_skipped_until_there_are_too_many(loss, factor):
    guard = FiniteGuard(max_skipped_steps=2)
    for number in (1, 2):
        ((metrics, at),), dropped = step(guard, loss, factor)
        assert (metrics["train/skipped_steps"], at) == (number, 6)
        assert dropped
        ((metrics, _),), dropped = step(guard, 1.0)  # a good one in between
        assert metrics == {"train/grad_norm": pytest.approx(13), "train/skipped_steps": number}
        assert not dropped
    resumed = FiniteGuard(max_skipped_steps=2)
    resumed.load_state_dict(guard.state_dict())
    for one in (guard, resumed):
        with pytest.raises(SettingError, match="max_skipped_steps = 2: in optimizer step 7 the loss is"):
            step(one, loss, factor)


def test_a_gradient_that_overflows_is_left_to_the_scaler():
    guard = FiniteGuard()
    _, dropped = step(guard, 1.0, math.inf, scaler=object())
    assert not dropped
    assert guard.skipped_steps == 0
    with pytest.raises(SettingError, match="the loss is nan"):
        step(guard, math.nan, scaler=object())


def test_windows_of_a_broken_step_are_named():
    with pytest.raises(SettingError, match=r"Windows of this step:\n  window 0\nLower"):
        step(FiniteGuard(), math.nan)
    with pytest.raises(SettingError, match=r"\n  window 0\n  window 1\nLower"):  # only the gradient is broken
        step(FiniteGuard(), 1.0, math.inf)


def test_windows_of_all_ranks_and_batches_are_in_the_order_of_their_samples():
    """Three batches of two windows on two ranks: rank r has the samples r and r + 2 of each four."""
    broken = {1: math.nan, 6: math.inf, 11: -math.inf}
    losses = torch.tensor([broken.get(sample, 1.0) for sample in range(12)])
    by_rank = losses.view(3, 2, 2).permute(2, 0, 1)  # rank, batch, window
    model = SimpleNamespace(window_losses=[*by_rank[0]], all_gather=lambda own: by_rank.reshape(2, -1))
    error = FiniteGuard()._error(trainer_of(2, 3), model, torch.tensor(math.nan), torch.tensor(1.0))
    assert "Windows of this step:\n  window 1\n  window 6\n  window 11\nLower" in str(error)


@pytest.mark.parametrize("n_broken", [8, 11])
def test_of_many_windows_eight_are_named(n_broken):
    losses = torch.full((1, n_broken), math.nan)
    model = SimpleNamespace(window_losses=[losses[0]], all_gather=lambda own: losses)
    message = str(FiniteGuard()._error(trainer_of(), model, torch.tensor(math.nan), torch.tensor(1.0)))
    assert [f"window {number}\n" in message for number in range(11)] == [True] * 8 + [False] * 3
    assert ("… and 3 more" in message) == (n_broken == 11)


# Ranks that stand still: what rank 0 concludes


class Job:
    """Ranks that each report once a period how often they have moved, with a new clock reading unless silent."""

    def __init__(self, world_size):
        self.ranks = Ranks(world_size, period_s=10.0)
        self.moves, self.clocks = [0] * world_size, [0] * world_size

    def period(self, moved=(), silent=()):
        for rank in range(len(self.moves)):
            if rank not in silent:
                self.moves[rank] += rank in moved
                self.clocks[rank] += 1
        self.ranks.update([f"{m} {c}".encode() for m, c in zip(self.moves, self.clocks, strict=True)])

    def stalled(self, timeout_s=30.0):
        return self.ranks.stalled(timeout_s)


def test_a_job_in_which_any_rank_moves_is_not_stalled():
    job = Job(3)
    for _ in range(20):
        job.period(moved=[1])
        assert job.stalled() is None


def test_standing_still_is_counted_in_periods_since_the_last_move():
    job = Job(2)
    for moved in ([0, 1], [], [], [0], [], []):
        job.period(moved=moved)
        assert job.stalled() is None  # at most 20 of 30 s
    job.period()
    assert job.stalled(30.0) is not None
    assert job.stalled(30.1) is None
    job.period(moved=[1])
    assert job.stalled() is None


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
    job = Job(world_size)
    for period in periods:
        job.period(**period)
    assert job.stalled().startswith(expected)


def test_half_of_the_time_is_not_yet_silence():
    job = Job(2)
    job.period(moved=[1])
    for silent in ([], [], [1], [1]):
        job.period(silent=silent)
    assert job.stalled(40.0) == "rank 0 made no progress for 40 s while the others waited"
    assert job.stalled(39.0) == "rank 1 did not respond for 39 s while the others waited"


# The thread that watches


class Ended(BaseException):
    pass


class Watched:
    """A guard whose thread runs here, period by period, with a store that answers at once."""

    def __init__(self, monkeypatch, timeout_s, rank):
        self.guard, self.waits, self.sent, self.rank = StallGuard(timeout_s), [], [], rank
        self.checkpoint, self.n_asked = RunCheckpoint(), 0
        monkeypatch.setattr(self.guard, "_end", self.end)

    def end(self, trainer, reason):
        raise Ended(reason)

    def set(self, key, value):
        assert key == str(self.rank)
        self.sent.append(value)

    def multi_get(self, names):
        self.n_asked += 1
        other = f"0 {self.n_asked}".encode()  # alive, and never moving
        return [self.sent[-1].encode() if name == str(self.rank) else other for name in names]

    def watch(self, periods, moves_in=()):
        """Run so many periods; in some of them the rank moves."""

        def wait(seconds):
            self.waits.append(seconds)
            if len(self.waits) in moves_in:
                self.guard.on_train_batch_start()
            return len(self.waits) > periods

        self.guard._finished = SimpleNamespace(wait=wait)
        trainer = SimpleNamespace(world_size=2, global_rank=self.rank, is_global_zero=self.rank == 0)
        trainer.callbacks = [self.checkpoint]
        self.guard._watch(trainer, self)


def test_rank_0_ends_a_job_in_which_nothing_moves(monkeypatch):
    watched = Watched(monkeypatch, 8.0, rank=0)
    with pytest.raises(Ended, match=r"^no rank made progress for 8 s$"):
        watched.watch(100)
    assert len(watched.waits) == 4
    with pytest.raises(Ended, match="rank 1 made no progress for 8 s"):
        Watched(monkeypatch, 8.0, rank=0).watch(100, moves_in=(2, 3, 5))
    Watched(monkeypatch, 8.0, rank=0).watch(100, moves_in=range(0, 101, 3))
    watched = Watched(monkeypatch, 8.0, rank=0)
    watched.checkpoint.being_written = Path("run/last.ckpt")
    with pytest.raises(Ended, match=r"for 8 s; rank 0 was still writing run/last\.ckpt, and stall"):
        watched.watch(100)


def test_another_rank_ends_itself_if_rank_0_does_not(monkeypatch):
    """Four periods later than rank 0 would; at once if the store is gone, unless this rank is about to end too."""
    for moves_in, n_waits in (((), 9), ((5, 6), 15)):  # 18 s are more than 8 + 4 * 2
        watched = Watched(monkeypatch, 8.0, rank=1)
        with pytest.raises(Ended, match=r"^rank 0 did not respond$"):
            watched.watch(100, moves_in)
        assert len(watched.waits) == n_waits
    Watched(monkeypatch, 8.0, rank=1).watch(8)

    watched = Watched(monkeypatch, 8.0, rank=1)
    monkeypatch.setattr(watched, "set", lambda *_: (_ for _ in ()).throw(RuntimeError("Connection reset")))
    with pytest.raises(Ended, match=r"^rank 0 did not respond$"):
        watched.watch(100)
    assert watched.waits == [2.0, 10]
    watched.waits.clear()
    watched.watch(1)
    assert watched.waits == [2.0, 10]


def test_all_ranks_meet_in_a_store_of_rank_0(monkeypatch):
    """Each has an entry in it before the first one continues."""
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    ports, met = [], []

    def store_of(rank):
        strategy = SimpleNamespace(
            broadcast=lambda port: (ports.append(port), ports[0])[1], barrier=lambda name: met.append(rank)
        )
        return StallGuard(8.0)._open_store(
            SimpleNamespace(global_rank=rank, is_global_zero=not rank, strategy=strategy)
        )

    first, second = store_of(0), store_of(1)
    assert ports == [first.port, 0]
    assert first.port == second.port > 1023  # a free one: two jobs may share a machine
    assert first.multi_get(["0", "1"]) == second.multi_get(["0", "1"]) == [b"0 0", b"0 0"]
    assert first.timeout == second.timeout == timedelta(seconds=8)
    assert met == [0, 1]


@pytest.mark.parametrize("has_checkpoint", [True, False])
def test_who_ends_the_run_says_how_to_resume_it(monkeypatch, capsys, tmp_path, has_checkpoint):
    """It also ends the processes that it has started."""
    monkeypatch.chdir(tmp_path)
    if has_checkpoint:
        expected = ("architecture", "hyper_parameters", "settings_history", "tokenizer", "config", "initialized_from")
        torch.save({**dict.fromkeys((*expected, "state_dict")), "global_step": 1200}, "last.ckpt")
    ends = []
    monkeypatch.setattr("llp.training.guards.os._exit", ends.append)
    strategy, checkpoint = SimpleNamespace(launcher=SimpleNamespace(kill=ends.append)), RunCheckpoint()
    checkpoint.last_model_path = str(tmp_path / "last.ckpt")
    trainer = SimpleNamespace(callbacks=[checkpoint], global_step=1233, strategy=strategy)
    StallGuard(8.0)._end(trainer, "rank 1 made no progress")
    assert ends == [signal.SIGKILL, 1]
    start = "\nllp: error: stall.timeout_s = 8: in optimizer step 1,234 rank 1 made no progress.\n"
    advice = "Resume from step 1,200 with: llp fit --ckpt_path last.ckpt\n"
    assert capsys.readouterr().err == start + (advice if has_checkpoint else "No checkpoint has been saved yet.\n")
    trainer = SimpleNamespace(callbacks=[], global_step=0, strategy=SimpleNamespace(launcher=None))
    StallGuard(8.5)._end(trainer, "nothing moves")  # a run from Python
    assert capsys.readouterr().err == "\nllp: error: stall.timeout_s = 8.5: in optimizer step 1 nothing moves.\n"


@pytest.mark.parametrize("timeout_s", [0, -1.0])
def test_a_stall_takes_some_time(timeout_s):
    with pytest.raises(SettingError, match=r"stall\.timeout_s"):
        StallGuard(timeout_s)


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
