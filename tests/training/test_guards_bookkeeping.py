"""What rank 0 makes of the ranks' messages, by hand; the norm of a gradient; steps that are left out, counted."""

import math
import signal
import threading
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from llp.checkpoints.callback import RunCheckpoint
from llp.errors import SettingError
from llp.training.finite_guard import FiniteGuard, gradient_norm
from llp.training.stall_guard import Ranks, StallGuard

PERIOD = 10.0


class Job:
    """Ranks of which each says, a period, how often it has moved, with a new reading of its clock or an old one."""

    def __init__(self, world_size):
        self.ranks = Ranks(world_size, PERIOD)
        self.moves, self.clocks = [0] * world_size, [0] * world_size

    def period(self, moved=(), silent=()):
        for rank in range(len(self.moves)):
            if rank in silent:
                continue
            self.moves[rank] += rank in moved
            self.clocks[rank] += 1
        self.ranks.update([f"{m} {c}".encode() for m, c in zip(self.moves, self.clocks, strict=True)])

    def stalled(self, timeout_s=30.0):
        return self.ranks.stalled(timeout_s)


def test_names_are_the_ranks():
    assert Ranks(3, PERIOD).names == ["0", "1", "2"]


def test_a_job_that_moves_is_not_stalled():
    """As long as any rank moves, however long the others don't."""
    job = Job(3)
    for _ in range(20):
        job.period(moved=[1])
        assert job.stalled() is None


def test_standing_still_is_counted_in_periods_since_the_last_move():
    job = Job(2)
    job.period(moved=[0, 1])
    for _ in range(2):
        job.period()
        assert job.stalled() is None  # 10 and 20 of 30 s
    job.period(moved=[0])
    assert job.stalled() is None
    for _ in range(2):
        job.period()
        assert job.stalled() is None
    job.period()
    assert job.stalled(30.0) is not None  # 30 s are reached
    assert job.stalled(30.1) is None
    job.period(moved=[1])
    assert job.stalled() is None


def test_a_job_that_never_moves_is_counted_from_its_start():
    job = Job(2)
    for _ in range(3):
        job.period()
    assert job.stalled(30.0) == "no rank made progress for 30 s"
    assert job.stalled(30.1) is None


def test_who_has_moved_least_is_waited_for():
    job = Job(4)
    job.period(moved=[0, 1, 2, 3])
    job.period(moved=[0, 2])
    for _ in range(3):
        job.period()
    assert job.stalled() == "rank 1, rank 3 made no progress for 30 s while the others waited"
    job = Job(3)
    job.period(moved=[0, 1])
    for _ in range(3):
        job.period()
    assert job.stalled() == "rank 2 made no progress for 30 s while the others waited"


def test_who_is_silent_is_named_first_of_all():
    """Silent for more than half of the time: also if another one has moved less."""
    job = Job(3)
    job.period(moved=[1, 2])
    job.period()
    for _ in range(2):
        job.period(silent=[2])
    assert job.stalled() == "rank 2 did not respond for 30 s while the others waited"
    job = Job(3)
    job.period(moved=[1, 2])
    for _ in range(3):
        job.period(silent=[1, 2])
    assert job.stalled() == "rank 1, rank 2 did not respond for 30 s while the others waited"


def test_half_of_the_time_is_not_yet_silence():
    job = Job(2)
    job.period(moved=[1])
    for silent in ([], [], [1], [1]):
        job.period(silent=silent)
    # Of 40 s without a move 20 without a word: rank 0 has moved least.
    assert job.stalled(40.0) == "rank 0 made no progress for 40 s while the others waited"
    assert job.stalled(39.0) == "rank 1 did not respond for 39 s while the others waited"


def test_who_speaks_again_is_not_silent():
    job = Job(2)
    job.period(moved=[0])
    for _ in range(2):
        job.period(silent=[0])
    job.period()
    assert job.stalled() == "rank 1 made no progress for 30 s while the others waited"


def test_a_message_is_moves_and_a_clock():
    """A new reading of a clock is no move, and a move with the old reading is one."""
    ranks = Ranks(2, PERIOD)
    ranks.update([b"0 0", b"0 0"])
    for clock in range(1, 4):
        ranks.update([f"0 {clock}".encode(), f"0 {clock}".encode()])
    assert ranks.stalled(40.0) == "no rank made progress for 40 s"
    ranks.update([b"5 3", b"0 4"])
    assert ranks.stalled(10.0) is None


@pytest.mark.parametrize("timeout_s", [0, -1.0])
def test_a_stall_takes_some_time(timeout_s):
    with pytest.raises(SettingError, match=r"stall\.timeout_s"):
        StallGuard(timeout_s)
    StallGuard(0.001)


# The gradient


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


def step(guard, loss, norm_factor=1.0, scaler=None):
    """One call before an optimizer step; what was logged, and whether the gradients were dropped."""
    module = module_with_gradients()
    module[0].weight.grad *= norm_factor
    module.step_loss = torch.tensor(loss)
    module.window_losses = [torch.tensor([loss, 1.0])]
    module.all_gather = lambda losses: losses
    logged = []
    trainer = SimpleNamespace(
        precision_plugin=SimpleNamespace(scaler=scaler),
        global_step=6,
        log_every_n_steps=1,
        world_size=1,
        accumulate_grad_batches=1,
        datamodule=SimpleNamespace(describe_samples=lambda n: [f"place {number}" for number in range(n)]),
        loggers=[SimpleNamespace(log_metrics=lambda figures, step: logged.append((figures, step)))],
    )
    optimizer = torch.optim.SGD(module.parameters(), lr=1.0)
    guard.on_before_optimizer_step(trainer, module, optimizer)
    return logged, module[0].weight.grad is None


@pytest.mark.parametrize(("loss", "factor"), [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.nan), (1.0, math.inf)])
def test_steps_are_left_out_until_there_are_too_many(loss, factor):
    guard = FiniteGuard(max_skipped_steps=2)
    for number in (1, 2):
        ((figures, at),), dropped = step(guard, loss, factor)
        assert (figures["train/skipped_steps"], at) == (number, 6)
        assert dropped
        ((figures, _),), dropped = step(guard, 1.0)  # a good one in between
        assert figures == {"train/grad_norm": pytest.approx(13), "train/skipped_steps": number}
        assert not dropped
    with pytest.raises(SettingError, match="max_skipped_steps = 2: in optimizer step 7 the loss is"):
        step(guard, loss, factor)
    again = FiniteGuard(max_skipped_steps=2)
    again.load_state_dict(guard.state_dict())
    with pytest.raises(SettingError):
        step(again, loss, factor)


def test_a_gradient_that_overflows_is_the_scalers_business():
    guard = FiniteGuard()
    _, dropped = step(guard, 1.0, math.inf, scaler=object())
    assert not dropped
    assert guard.skipped_steps == 0
    with pytest.raises(SettingError, match="the loss is nan"):
        step(guard, math.nan, scaler=object())


def test_windows_of_a_broken_step_are_named():
    with pytest.raises(SettingError) as error:
        step(FiniteGuard(), math.nan)
    assert "\n  place 0\n" in str(error.value)
    assert "place 1" not in str(error.value)  # its own loss is fine
    with pytest.raises(SettingError) as error:  # only the gradient is broken: any of them may be why
        step(FiniteGuard(), 1.0, math.inf)
    assert "\n  place 0\n  place 1\n" in str(error.value)


def test_windows_of_all_ranks_and_batches_are_in_the_order_of_their_samples():
    """Three batches of two windows on two ranks: rank r has the samples r and r + 2 of each four."""
    guard = FiniteGuard()
    broken = {1: math.nan, 6: math.inf, 11: -math.inf}
    losses = torch.tensor([broken.get(sample, 1.0) for sample in range(12)])
    by_rank = losses.view(3, 2, 2).permute(2, 0, 1)  # rank, batch, window
    model = SimpleNamespace(window_losses=[*by_rank[0]], all_gather=lambda own: by_rank.reshape(2, -1))
    trainer = SimpleNamespace(
        world_size=2,
        accumulate_grad_batches=3,
        global_step=0,
        datamodule=SimpleNamespace(describe_samples=lambda n: [f"place {number}" for number in range(n)]),
    )
    message = str(guard._error(trainer, model, torch.tensor(math.nan), torch.tensor(1.0)))
    assert "Windows of this step:\n  place 1\n  place 6\n  place 11\nLower" in message


@pytest.mark.parametrize("n_broken", [8, 11])
def test_of_many_windows_eight_are_named(n_broken):
    losses = torch.full((1, n_broken), math.nan)
    model = SimpleNamespace(window_losses=[losses[0]], all_gather=lambda own: losses)
    trainer = SimpleNamespace(
        world_size=1,
        accumulate_grad_batches=1,
        global_step=1233,
        datamodule=SimpleNamespace(describe_samples=lambda n: [f"place {number}" for number in range(n)]),
    )
    message = str(FiniteGuard()._error(trainer, model, torch.tensor(math.nan), torch.tensor(1.0)))
    assert "in optimizer step 1,234 the loss is nan" in message
    assert [f"place {number}\n" in message for number in range(11)] == [True] * 8 + [False] * 3
    assert ("… and 3 more" in message) == (n_broken == 11)
    assert ("more" in message) == (n_broken == 11)


# The thread that watches


class Ended(BaseException):
    pass


class Watched:
    """A guard whose thread runs here, period by period, with a store that answers at once."""

    def __init__(self, monkeypatch, timeout_s, rank, world_size=2):
        self.guard, self.waits, self.sent, self.asked = StallGuard(timeout_s), [], [], 0
        self.rank, self.world_size, self.checkpoint = rank, world_size, RunCheckpoint()
        monkeypatch.setattr(self.guard, "_end", self.end)

    def end(self, trainer, reason):
        assert trainer.global_rank == self.rank
        raise Ended(reason)

    def set(self, key, value):
        assert key == str(self.rank)
        self.sent.append(value)

    def multi_get(self, names):
        self.asked += 1
        assert names == [str(rank) for rank in range(self.world_size)]
        others = f"0 {self.asked}".encode()  # alive, and never moving
        return [self.sent[-1].encode() if rank == self.rank else others for rank in range(self.world_size)]

    def watch(self, periods, moves_in=()):
        """Run so many periods; in some of them the rank moves."""

        def wait(seconds):
            self.waits.append(seconds)
            if len(self.waits) in moves_in:
                self.guard.on_train_batch_start()
            return len(self.waits) > periods

        self.guard._finished = SimpleNamespace(wait=wait)
        rank_zero = self.rank == 0
        trainer = SimpleNamespace(world_size=self.world_size, global_rank=self.rank, is_global_zero=rank_zero)
        trainer.checkpoint_callbacks = [self.checkpoint]
        self.guard._watch(trainer, self)


@pytest.mark.parametrize(("timeout_s", "period_s"), [(8.0, 2.0), (1800.0, 10.0)])
def test_a_period_is_a_quarter_of_the_time_or_ten_seconds(monkeypatch, timeout_s, period_s):
    watched = Watched(monkeypatch, timeout_s, rank=1)
    watched.watch(3)
    assert watched.waits == [period_s] * 4
    assert [message.split()[0] for message in watched.sent] == ["0"] * 3
    clocks = [int(message.split()[1]) for message in watched.sent]
    assert clocks == sorted(set(clocks))  # each is new
    assert watched.asked == 0  # only rank 0 asks the others


def test_rank_0_ends_a_job_in_which_nothing_moves(monkeypatch):
    watched = Watched(monkeypatch, 8.0, rank=0)
    with pytest.raises(Ended, match=r"^no rank made progress for 8 s$"):
        watched.watch(100)
    assert len(watched.waits) == 4
    watched = Watched(monkeypatch, 8.0, rank=0)
    with pytest.raises(Ended, match="rank 1 made no progress for 8 s"):
        watched.watch(100, moves_in=(2, 3, 5))
    assert [int(message.split()[0]) for message in watched.sent] == [0, 1, 2, 2, 3, 3, 3, 3, 3]
    Watched(monkeypatch, 8.0, rank=0).watch(100, moves_in=range(0, 101, 3))


def test_a_checkpoint_that_takes_too_long_is_what_the_ranks_wait_for(monkeypatch):
    watched = Watched(monkeypatch, 8.0, rank=0)
    watched.checkpoint.being_written = Path("run/last.ckpt")
    with pytest.raises(Ended, match=r"for 8 s; rank 0 was still writing run/last\.ckpt, and stall"):
        watched.watch(100)


def test_another_rank_ends_itself_where_rank_0_does_not(monkeypatch):
    """A little later than rank 0 would: after four more periods."""
    watched = Watched(monkeypatch, 8.0, rank=1)
    with pytest.raises(Ended, match=r"^rank 0 did not respond$"):
        watched.watch(100)
    assert len(watched.waits) == 9  # 18 s are more than 8 + 4 * 2
    watched = Watched(monkeypatch, 8.0, rank=1)
    with pytest.raises(Ended, match=r"^rank 0 did not respond$"):
        watched.watch(100, moves_in=(5, 6))
    assert len(watched.waits) == 6 + 9
    Watched(monkeypatch, 8.0, rank=1).watch(8)


def test_a_store_that_is_gone_is_rank_0_gone(monkeypatch):
    """Unless this rank is about to end as well."""
    watched = Watched(monkeypatch, 8.0, rank=1)
    monkeypatch.setattr(watched, "set", lambda *_: (_ for _ in ()).throw(RuntimeError("Connection reset")))
    with pytest.raises(Ended, match=r"^rank 0 did not respond$"):
        watched.watch(100)
    assert watched.waits == [2.0, 10]
    watched.waits.clear()
    watched.watch(1)
    assert watched.waits == [2.0, 10]


def test_all_ranks_meet_in_a_store_of_rank_0(monkeypatch):
    """Each has an entry in it before the first one goes on."""
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    ports, met = [], []

    def store_of(rank):
        def broadcast(port):
            ports.append(port)
            return ports[0]

        strategy = SimpleNamespace(broadcast=broadcast, barrier=lambda name: met.append(rank))
        trainer = SimpleNamespace(global_rank=rank, is_global_zero=rank == 0, strategy=strategy)
        return StallGuard(8.0)._open_store(trainer)

    first, second = store_of(0), store_of(1)
    assert ports == [first.port, 0]
    assert ports[0] > 1023  # one that is free: two jobs may share a machine
    assert second.port == first.port
    assert first.multi_get(["0", "1"]) == second.multi_get(["0", "1"]) == [b"0 0", b"0 0"]
    assert first.timeout == second.timeout == timedelta(seconds=8)
    assert met == [0, 1]


def test_the_thread_watches_from_the_start_of_training_to_its_end(monkeypatch):
    """Of several processes only, and again in a second fit; it is a daemon, which holds no process up."""
    guard, watched = StallGuard(8.0), []

    def watch(trainer, store):
        thread = threading.current_thread()
        watched.append((trainer, store, thread.daemon))
        assert guard._finished.wait(10)

    monkeypatch.setattr(guard, "_open_store", lambda trainer: f"store of {trainer.world_size}")
    monkeypatch.setattr(guard, "_watch", watch)
    guard.on_train_start(SimpleNamespace(world_size=1), None)
    guard.on_train_end(None, None)
    assert watched == []
    trainer = SimpleNamespace(world_size=2)
    for number, end in enumerate(
        (lambda: guard.on_train_end(None, None), lambda: guard.on_exception(None, None, None))
    ):
        guard.on_train_start(trainer, None)
        assert not guard._finished.is_set()
        end()
        assert guard._finished.is_set()
        assert not guard._thread.is_alive()
        assert watched == [(trainer, "store of 2", True)] * (number + 1)


@pytest.mark.parametrize("is_there", [True, False])
def test_who_ends_the_run_says_where_it_was_and_how_to_go_on(monkeypatch, capsys, tmp_path, is_there):
    """And takes the processes that it has started with it; also where the checkpoint can't be read any more."""
    monkeypatch.chdir(tmp_path)
    if is_there:
        expected = ("architecture", "hyper_parameters", "settings_history", "tokenizer", "config", "initialized_from")
        torch.save({**dict.fromkeys((*expected, "state_dict")), "global_step": 1200}, "last.ckpt")
    ends = []
    monkeypatch.setattr("llp.training.stall_guard.os._exit", lambda status: ends.append(status))
    strategy = SimpleNamespace(launcher=SimpleNamespace(kill=ends.append))
    checkpoint = RunCheckpoint()
    checkpoint.last_model_path = str(tmp_path / "last.ckpt")
    trainer = SimpleNamespace(checkpoint_callbacks=[checkpoint], global_step=1233, strategy=strategy)
    StallGuard(8.0)._end(trainer, "rank 1 made no progress")
    assert ends == [signal.SIGKILL, 1]
    out, err = capsys.readouterr()
    assert out == ""
    start = "\nllp: error: stall.timeout_s = 8: in optimizer step 1,234 rank 1 made no progress.\n"
    advice = "Resume from step 1,200 with: llp fit --ckpt_path last.ckpt\n"
    assert err == start + (advice if is_there else "No checkpoint has been saved yet.\n")


def test_who_ends_a_run_from_python_has_nothing_to_advise(monkeypatch, capsys):
    ends = []
    monkeypatch.setattr("llp.training.stall_guard.os._exit", lambda status: ends.append(status))
    strategy = SimpleNamespace(launcher=None)
    trainer = SimpleNamespace(checkpoint_callbacks=[], global_step=0, strategy=strategy)
    StallGuard(8.5)._end(trainer, "rank 1 made no progress")
    assert ends == [1]
    message = "stall.timeout_s = 8.5: in optimizer step 1 rank 1 made no progress."
    assert capsys.readouterr().err == f"\nllp: error: {message}\n"


def test_every_part_of_a_step_is_a_move():
    guard = StallGuard()
    hooks = ["on_train_batch_start", "on_before_backward", "on_after_backward", "on_before_optimizer_step"]
    hooks += ["on_train_batch_end", "on_validation_batch_start", "on_validation_batch_end", "on_validation_end"]
    for number, hook in enumerate(hooks):
        assert callable(getattr(Callback, hook))  # Lightning calls it
        assert guard._moves == number
        getattr(guard, hook)("anything", batch=None)
    assert guard._moves == len(hooks)
