"""Two real processes on gloo, DDP and FSDP2: the losses, the test's figures and the samples of one process."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helpers.runs import assert_same_run, curves

CONFIG = """
model:
  class_path: llp.LLP
  init_args: {dim: 16, n_layers: 2, n_heads: 2, segment_len: 8, learning_rate: 1.0e-2, schedule: halving,
    warmup_steps: 5}
data:
  class_path: datamodules.WikiText103
  init_args: {path: WIKITEXT, cache_dir: CACHE, tokenizer: datamodules.Bytes, window_len: 64}
trainer: {accelerator: cpu, max_steps: 8, val_check_interval: 4, log_every_n_steps: 1, gradient_clip_val: 0.1,
  enable_progress_bar: false, enable_model_summary: false}
checkpoint: {every_n_train_steps: 3}
sample: {sample_tokens: 4}
"""
FSDP2 = """
trainer:
  strategy:
    class_path: lightning.pytorch.strategies.ModelParallelStrategy
    init_args: {data_parallel_size: auto, process_group_backend: gloo, save_distributed_checkpoint: SHARDED}
"""
ONE = ["--trainer.strategy", "auto", "--trainer.devices", "1", "--data.init_args.batch_size", "4"]
TWO = ["--trainer.devices", "2", "--data.init_args.batch_size", "2"]
DDP = ["--trainer.strategy", "ddp", *TWO]
STRATEGIES = {
    "single": ONE,
    "ddp": DDP,
    "fsdp2": ["--config", "fsdp2.yaml", *TWO],
}
STRIKE = """
import os
from lightning.pytorch import Callback

class At(Callback):
    \"\"\"Sends a signal to one rank's own process as it begins a step.\"\"\"

    def __init__(self, step: int, rank: int, signum: int) -> None:
        self.step, self.rank, self.signum = step, rank, signum

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if (trainer.global_step, trainer.global_rank) == (self.step, self.rank):
            os.kill(os.getpid(), self.signum)

class FullDisk(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.is_global_zero:
            raise OSError("No space left on device")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory, finished):
    folder = tmp_path_factory.mktemp("distributed")
    config = CONFIG.replace("CACHE", str(folder / "cache")).replace("WIKITEXT", str(finished / "wikitext"))
    (folder / "config.yaml").write_text(config)
    (folder / "fsdp2.yaml").write_text(FSDP2.replace("SHARDED", "false"))
    (folder / "sharded.yaml").write_text(FSDP2.replace("SHARDED", "true"))
    (folder / "strike.py").write_text(STRIKE)
    return folder


FORKS = """
import json, signal, sys
from pathlib import Path
from campaigns.forked import Forked, import_all, pair
import_all()
print("ready", flush=True)
for line in sys.stdin:
    arguments, n_processes = json.loads(line)
    processes = pair(Path.cwd(), arguments) if n_processes == 2 else [Forked(Path.cwd(), arguments)]
    first = processes[0].outcome()
    for process in processes[1:]:
        if "did not respond" in first.err:  # it is frozen
            process.send(signal.SIGKILL)
        process.outcome()
    print(json.dumps([first.status, first.err]), flush=True)
"""


@pytest.fixture(scope="module")
def llp(folder):
    """Run `llp` in one or two forks of a process that has imported everything; returns rank 0's status and errors."""
    paths = [str(folder), str(Path(__file__).parents[1]), *sys.path]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", FORKS], cwd=folder, env=environment, **pipes) as server:
        assert server.stdout.readline() == "ready\n"

        def llp(*arguments, fails=False):
            print(json.dumps([arguments, 2 if "2" in arguments else 1]), file=server.stdin, flush=True)
            status, err = json.loads(server.stdout.readline())
            assert fails or status == 0, err
            return status, err

        yield llp


@pytest.fixture(scope="module")
def runs(llp, folder):
    """The same run under each strategy: its curves and samples, and the report of one checkpoint tested under it."""
    results = {}
    for name, flags in STRATEGIES.items():
        llp("fit", "--config", "config.yaml", "--name", name, *flags)
        events = EventAccumulator(str(folder / "lightning_logs" / name))
        events.Reload()
        samples = [event.tensor_proto.string_val for event in events.Tensors("sample/text_summary")]
        # One checkpoint under all three: the figures are the same to the last digit printed.
        llp("test", "--ckpt_path", str(folder / "lightning_logs/single/checkpoints/last.ckpt"), *flags)
        report = json.loads((folder / "lightning_logs/single/test.json").read_text())
        results[name] = curves(folder / "lightning_logs" / name), samples, report
    return results


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_train_as_one(runs, strategy):
    (one, sample, _), (two, other_sample, _) = runs["single"], runs[strategy]
    assert sample == other_sample
    for tag in ("train/loss", "train/grad_norm", "train/learning_rate", "train/tokens", "val/word_perplexity"):
        assert len(one[tag]) in (2, 8)
        assert dict(two[tag]) == pytest.approx(dict(one[tag]), rel=1e-5), tag


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_score_as_one(runs, strategy):
    expected, report = runs["single"][-1], runs[strategy][-1]
    assert report["protocol"]["certificate"]["causal"] is True
    assert report["protocol"]["complete"] is True
    assert len(report["rows"]) == len(expected["rows"])
    for row, expected_row in zip(report["rows"], expected["rows"], strict=True):
        assert row["tokens"] == expected_row["tokens"]
        for name in ("loss", "perplexity", "word_perplexity", "bits_per_byte"):
            assert f"{row[name]:,.4f}" == f"{expected_row[name]:,.4f}"


@pytest.mark.slow
def test_a_checkpoint_goes_from_strategy_to_strategy(llp, folder, runs):
    """FSDP2 in shards -> one process -> DDP -> FSDP2 -> `llp test`: the losses of the run that never changed."""
    checkpoints = folder / "lightning_logs/wanderer/checkpoints"
    last = str(checkpoints / "last.ckpt")
    consolidated = str(checkpoints / "last-consolidated.ckpt")
    sharded = ["--config", "sharded.yaml", *TWO]
    llp("fit", "--config", "config.yaml", "--name", "wanderer", *sharded, "--trainer.max_steps", "3")
    llp("consolidate", last)
    llp("fit", "--ckpt_path", consolidated, *ONE, "--trainer.max_steps", "5")
    llp("fit", "--ckpt_path", last, *DDP, "--trainer.max_steps", "6")
    llp("fit", "--ckpt_path", last, *sharded, "--trainer.max_steps", "8")
    wandered, (expected, _, expected_report) = curves(folder / "lightning_logs/wanderer"), runs["single"]
    for tag in ("train/loss", "train/grad_norm", "train/tokens"):
        assert dict(wandered[tag]) == pytest.approx(dict(expected[tag]), rel=1e-5), tag
    llp("consolidate", last)
    llp("test", "--ckpt_path", consolidated, *ONE)
    llp("test", "--ckpt_path", last, *sharded)
    reports = [json.loads((checkpoints.parent / name).read_text()) for name in ("test-1.json", "test.json")]
    for report in reports:
        losses = [row["loss"] for row in report["rows"]]
        assert losses == pytest.approx([row["loss"] for row in expected_report["rows"]], rel=1e-5)
    assert {path.name for path in checkpoints.iterdir()} == {"best.ckpt", "last.ckpt", "last-consolidated.ckpt"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "rank", "signum"),
    [("ddp", 1, signal.SIGTERM), ("fsdp2", 0, signal.SIGUSR1)],
)
def test_two_processes_stopped_go_on_as_if_nothing_had_been(llp, folder, runs, strategy, rank, signum):
    """One of the two is struck; both stop at the same step, and go on as the run that was left alone."""
    name, flags = f"{strategy}-{signum.name}", STRATEGIES[strategy]
    (folder / f"{name}.yaml").write_text(
        f"trainer: {{callbacks: [{{class_path: strike.At, init_args: {{step: 5, rank: {rank}, signum: {signum}}}}}]}}"
    )
    arguments = ["fit", "--config", "config.yaml", *flags, "--name", name, "--ckpt_path", "auto"]
    status, err = llp(*arguments, "--config", f"{name}.yaml", fails=True)
    assert status == 128 + signum
    assert "Resume from step 6 with: llp fit --ckpt_path" in err
    assert "Traceback" not in err
    llp(*arguments, "--trainer.callbacks", "null")
    assert_same_run(folder / "lightning_logs" / strategy, folder / "lightning_logs" / name)


def test_a_frozen_rank_ends_the_run(llp, folder):
    """More of them: `test_guards.py`, and the campaigns with faults and with two nodes."""
    signum = int(signal.SIGSTOP)
    strike = f"trainer: {{callbacks: [{{class_path: strike.At, init_args: {{step: 4, rank: 1, signum: {signum}}}}}]}}"
    (folder / "stall.yaml").write_text(strike)
    arguments = ["fit", "--config", "config.yaml", "--config", "stall.yaml", *DDP, "--name", "stalled"]
    status, err = llp(*arguments, "--stall.timeout_s", "4", fails=True)
    assert status == 1
    (message,) = (line for line in err.splitlines() if line.startswith("llp: error"))
    assert "stall.timeout_s = 4: in optimizer step 5 rank 1 did not respond for 4 s" in message
    assert "Resume from step 4 with: llp fit --ckpt_path" in err


def test_an_error_of_one_rank_is_one_message(llp):
    """The other one, whose collective then fails, has no traceback to show."""
    status, err = llp("fit", "--config", "config.yaml", *DDP, "--trainer.callbacks", "strike.FullDisk", fails=True)
    assert status == 1
    assert "llp fit: error: No space left on device" in err
    assert "Traceback" not in err
