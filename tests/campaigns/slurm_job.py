"""A training run as a job on the SLURM of two nodes: submitted, followed, and compared with the undisturbed run."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from campaigns.slurm_cluster import ENDED, NODE_LOST_S, ROOT, SHARED, Cluster, wait_for
from helpers.runs import assert_same_run, curves
from llp.checkpoints import reading

STEPS, STALL_S = 60, 15
LOGS = SHARED / "lightning_logs"
RUN: dict[str, Any] = yaml.safe_load(f"""
model:
  class_path: llp.LLP
  init_args: {{dim: 16, n_layers: 2, n_heads: 2, segment_len: 8, dropout: 0.0, schedule: halving, warmup_steps: 5}}
data:
  class_path: datamodules.PythonReference
  init_args: {{tokenizer: datamodules.Bytes, window_len: 64, cache_dir: {SHARED}/cache}}
trainer:
  accelerator: cpu
  max_steps: {STEPS}
  val_check_interval: 30
  log_every_n_steps: 1
  gradient_clip_val: 0.1
  enable_progress_bar: false
  enable_model_summary: false
  callbacks: [{{class_path: campaigns.pace.Pace, init_args: {{step_s: 0.1}}}}]
checkpoint: {{every_n_train_steps: 5}}
stall: {{timeout_s: {STALL_S}}}
""")
FLAGS = {"ddp": ["--config", "ddp.yaml"], "fsdp2": ["--config", "fsdp2.yaml"]}
ACROSS_NODES = NODE_LOST_S + 60


def sizes(nodes: int, tasks: int) -> tuple[list[str], list[str]]:
    """Arguments of sbatch and of `llp` for a world in which a step has the same four windows."""
    world = nodes * tasks
    sbatch = [f"--nodes={nodes}", f"--ntasks-per-node={tasks}", "--gpus-per-node=0", "--cpus-per-task=1"]
    return sbatch, ["--data.init_args.batch_size", str(4 // world), "--trainer.limit_val_batches", str(2 * world)]


def submit(cluster: Cluster, *arguments: str, nodes: int = 2, tasks: int = 1, sbatch: Iterable[str] = ()) -> str:
    """Submit fit.sbatch for `run.yaml` with further arguments; returns the job's number."""
    world, batches = sizes(nodes, tasks)
    return cluster.submit("--config", "run.yaml", *arguments, *batches, sbatch=[*world, *sbatch])


def whole(cluster: Cluster, strategy: str, nodes: int = 2, tasks: int = 1) -> Path:
    """The folder of an undisturbed run, which runs when it is first asked for."""
    folder = LOGS / f"{strategy}-{nodes}x{tasks}"
    if not folder.exists():
        job = submit(cluster, *FLAGS[strategy], "--name", folder.name, nodes=nodes, tasks=tasks)
        assert cluster.finish(job) == "COMPLETED", (LOGS / f"slurm-{job}.log").read_text()
    return folder


class Job:
    """A run on two nodes that meets a fault, and the undisturbed one that it must equal in the end."""

    def __init__(self, cluster: Cluster, strategy: str = "ddp", sbatch: Iterable[str] = ()) -> None:
        self.cluster, self.whole = cluster, whole(cluster, strategy)
        cluster.wait_until_idle()
        self.number = submit(cluster, *FLAGS[strategy], sbatch=sbatch)
        self.folder = LOGS / self.number
        self.late_kills_may_come = False
        self.late_kills = 0

    def lines(self) -> list[str]:
        """The job's log."""
        return (LOGS / f"slurm-{self.number}.log").read_text().splitlines()

    def saved(self) -> int:
        """The step of the newest whole checkpoint, 0 if there is none."""
        path = next(reading.newest_first(self.folder / "checkpoints"), None)
        return 0 if path is None else reading.read(path)["global_step"]

    def train(self, steps: int = 10) -> int:
        """Wait until so many more steps are saved; returns the step."""
        least = self.saved() + steps
        wait_for(f"job {self.number} saves step {least}", lambda: self._is_late_kill() or self.saved() >= least, 300)
        return self.saved()

    def _is_late_kill(self) -> bool:
        """Requeue a job that SLURM has killed for its last start, as it does when a node rejoins late.

        The message that ends a job there is sent again when the node answers, and meets the next start; or that start
        comes before the node's daemon is ready. Returns False in any case: the caller waits on.
        """
        if self.late_kills_may_come and self.cluster.state(self.number) == "FAILED":
            assert self.lines()[-1].startswith("srun: "), self.lines()
            self.late_kills += 1
            self.resume()
        return False

    def ends(self, saved: int, seconds: float, *states: str) -> None:
        """Wait until SLURM has ended it or returned it to the queue, in one of these states and with `saved` kept."""
        self.cluster.wait_for_state(self.number, "PENDING", "REQUEUED", *ENDED, seconds=seconds)
        assert self.saved() >= saved, f"step {saved} was saved, {self.saved()} is there"
        assert self.cluster.state(self.number) in states, self.lines()

    def says(self, *words: str) -> None:
        """Wait for a line of the log that has all these words, and print it."""

        def found() -> list[str]:
            return [line for line in self.lines() if all(word in line for word in words)]

        wait_for(f"the log says {words}", found, 30)
        print(f"  {found()[0].strip()}", flush=True)

    def resume(self) -> None:
        """Let it run again, as a user does if SLURM doesn't."""
        if self.cluster.state(self.number) in ENDED:
            self.cluster("scontrol", "requeue", self.number)

    def completes(self, restarts: int = 1) -> None:
        """Resume it and wait for its end; after so many restarts it must be the undisturbed run, bit for bit."""
        self.resume()
        ends = f"job {self.number} has completed"
        wait_for(ends, lambda: self._is_late_kill() or self.cluster.state(self.number) in ENDED, 400)
        assert self.cluster.state(self.number) == "COMPLETED", self.lines()
        assert self.cluster.restarts(self.number) == restarts + self.late_kills
        if (self.folder / "checkpoints/last.ckpt").is_dir():
            np.testing.assert_equal(curves(self.whole), curves(self.folder))
        else:
            assert_same_run(self.whole, self.folder)
        print(f"  job {self.number} is the undisturbed run, bit for bit", flush=True)


def prepare(cluster: Cluster) -> None:
    """The shared folder as a user has it: the run's configuration, and the text prepared on the login node."""
    (SHARED / "run.yaml").write_text(yaml.safe_dump(RUN))
    for name in FLAGS:
        shutil.copy(ROOT / f"configs/trainer/{name}.yaml", SHARED)
    LOGS.mkdir()
    (SHARED / "data.yaml").write_text(yaml.safe_dump({"data": RUN["data"]}))
    print(cluster("llp", "prepare", "--config", "data.yaml"), flush=True)
