"""The batch files on a SLURM of two nodes, left alone and with everything that can go wrong.

Not part of the default tests, since it takes some 25 minutes, installs Debian's packages and wants to be root:

    python tests/two_nodes.py [--cases equal preempted …] [--table FILE] [--seed 0]

The nodes are namespaces of this machine, see `helpers.slurm_cluster`; nothing is left of them at the end.
"""

import argparse
import json
import logging
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from helpers.pace import SLOW_DISK
from helpers.slurm_cluster import (
    GRACE_S,
    KILL_WAIT_S,
    NODE_LOST_S,
    NODES,
    ROOT,
    SHARED,
    SLURM,
    Cluster,
    end_at_signals,
    run_in_namespaces,
    wait_for,
)

from helpers.runs import assert_same_run, curves
from llp.checkpoints import reading

STEPS = 60
STALL_S = 15
RUN = {
    "model": {
        "class_path": "llp.LLP",
        "init_args": {
            "dim": 16,
            "n_layers": 2,
            "n_heads": 2,
            "segment_len": 8,
            "dropout": 0.0,
            "schedule": "halving",
            "warmup_steps": 5,
        },
    },
    "data": {
        "class_path": "datamodules.PythonReference",
        "init_args": {"tokenizer": "datamodules.Bytes", "window_len": 64, "cache_dir": str(SHARED / "cache")},
    },
    "trainer": {
        "accelerator": "cpu",
        "max_steps": STEPS,
        "val_check_interval": 30,
        "log_every_n_steps": 1,
        "gradient_clip_val": 0.1,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": [{"class_path": "helpers.pace.Pace", "init_args": {"step_s": 0.1}}],
    },
    "checkpoint": {"every_n_train_steps": 5},
    "stall": {"timeout_s": STALL_S},
}
LOGS = SHARED / "lightning_logs"
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
NOTHING = "nothing to do"
DDP = ["--config", "ddp.yaml"]
FSDP2 = ["--config", "fsdp2.yaml"]


@dataclass
class Results:
    """The rows of the two tables."""

    equalities: list[list[str]] = field(default_factory=list)
    faults: list[list[str]] = field(default_factory=list)

    def markdown(self) -> str:
        tables = (
            (["what", "outcome"], self.equalities),
            (["fault", "what the job does", "within", "what the log says", "afterwards"], self.faults),
        )
        return "\n".join(_markdown([head, ["---"] * len(head), *rows]) for head, rows in tables if rows)


def _markdown(rows: Iterable[Iterable[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


class Bench:
    """The cluster, the runs on it, and what came out."""

    def __init__(self, cluster: Cluster, seed: int) -> None:
        self.cluster, self.seed, self.results = cluster, seed, Results()
        self.prepared: dict[Path, int] = {}

    def sizes(self, nodes: int, tasks: int) -> tuple[list[str], list[str]]:
        """Arguments of sbatch and of `llp` for a world in which a step has the same four windows."""
        world = nodes * tasks
        sbatch = [f"--nodes={nodes}", f"--ntasks-per-node={tasks}", "--gpus-per-node=0", "--cpus-per-task=1"]
        batches = ["--data.init_args.batch_size", str(4 // world), "--trainer.limit_val_batches", str(2 * world)]
        return sbatch, batches

    def submit(self, *arguments: str, nodes: int = 2, tasks: int = 1, sbatch: Iterable[str] = ()) -> str:
        """Submit fit.sbatch for `run.yaml` with further arguments."""
        sizes, batches = self.sizes(nodes, tasks)
        return self.cluster.submit("--config", "run.yaml", *arguments, *batches, sbatch=[*sizes, *sbatch])

    def whole(self, name: str, *arguments: str, nodes: int = 2, tasks: int = 1) -> Path:
        """The folder of a run that nothing disturbs, carried out when it is first asked for."""
        if not (LOGS / name).exists():
            print(f"The undisturbed run {name}", flush=True)
            job = self.submit(*arguments, "--name", name, nodes=nodes, tasks=tasks)
            assert self.cluster.finish(job) == "COMPLETED"
        return LOGS / name

    def single(self) -> Path:
        """The folder of the same run in one process on the head, without SLURM."""
        if not (LOGS / "single").exists():
            print("The run of one process", flush=True)
            _, batches = self.sizes(1, 1)
            self.cluster("llp", "fit", "--config", "run.yaml", *batches, "--name", "single")
        return LOGS / "single"

    def add_fault(self, what: str, state: str, after: float, limit: float, said: str = "") -> None:
        """A row of the table: what SLURM made of the job, after how many seconds of at most `limit`."""
        returns = state in ("PENDING", "REQUEUED")
        does = "returns to the queue, and goes on" if returns else f"ends: {state}"
        within = f"{after:.0f} s (at most {limit:.0f} s)"
        self.results.faults.append([what, does, within, said, NOTHING if returns else "`scontrol requeue <job>`"])

    def scores(self, *srun: str, flags: Iterable[str] = ()) -> list[dict[str, Any]]:
        """The figures of `llp test` on the one process's checkpoint."""
        self.cluster(*srun, "llp", "test", "--ckpt_path", str(self.single()), *flags)
        return json.loads((self.single() / "test.json").read_text())["rows"]


class Job:
    """A run on two nodes that a fault will meet, and the undisturbed one which it must equal in the end."""

    def __init__(
        self, bench: Bench, flags: Iterable[str] = DDP, name: str = "ddp-2x1", sbatch: Iterable[str] = ()
    ) -> None:
        self.bench, self.cluster = bench, bench.cluster
        self.whole = bench.whole(name, *flags)
        self.cluster.wait_until_idle()
        self.number = bench.submit(*flags, sbatch=sbatch)
        self.folder = LOGS / self.number
        self.late_kills_may_come = False
        self.late_kills = 0

    def log(self) -> str:
        return (LOGS / f"slurm-{self.number}.log").read_text()

    def saved(self) -> int:
        """The step of the newest whole checkpoint; 0: there is none."""
        path = next(reading.newest_first(self.folder / "checkpoints"), None)
        return 0 if path is None else reading.read(path)["global_step"]

    def train(self, steps: int = 10) -> int:
        """Wait until a checkpoint has so many steps more than now; returns its step."""
        least = self.saved() + steps
        wait_for(
            f"job {self.number} has saved step {least}", lambda: self._is_late_kill() or self.saved() >= least, 300
        )
        return self.saved()

    def _is_late_kill(self) -> bool:
        """Whether SLURM has killed it for the last start, as it does when a node returns that did not answer.

        The message that ends a job there is sent again when it answers, and meets the next start; or that comes before
        the node's daemon is ready. The job is requeued here once more; returns False in any case: one waits on.
        """
        if self.late_kills_may_come and self.cluster.state(self.number) == "FAILED":
            assert self._lines()[-1].startswith("srun: "), self.log()
            print(f"  {self.number} was killed for its last start; once more", flush=True)
            self.late_kills += 1
            self.resume()
        return False

    def ends(self, saved: int, seconds: float) -> tuple[str, float]:
        """Wait until SLURM has ended it or returned it to the queue; returns which, and after how many seconds."""
        after = self.cluster.wait_for_state(self.number, "PENDING", "REQUEUED", *ENDED, seconds=seconds)
        assert self.saved() >= saved, f"step {saved} was saved, {self.saved()} is there"
        return self.cluster.state(self.number), after

    def said(self, *words: str) -> str:
        """The line of the log in which all words are."""
        wait_for(f"the log says {words}", lambda: any(all(w in line for w in words) for line in self._lines()), 30)
        return next(line for line in self._lines() if all(word in line for word in words)).strip()

    def _lines(self) -> list[str]:
        return self.log().splitlines()

    def resume(self) -> None:
        """Let it run again, as a user does if SLURM doesn't."""
        if self.cluster.state(self.number) in ENDED:
            self.cluster("scontrol", "requeue", self.number)

    def completes(self, restarts: int) -> None:
        """Wait for its end; it must be the undisturbed run, bit for bit, after so many restarts."""
        ends = f"job {self.number} has completed"
        wait_for(ends, lambda: self._is_late_kill() or self.cluster.state(self.number) in ENDED, 400)
        assert self.cluster.state(self.number) == "COMPLETED", self.log()
        assert self.cluster.restarts(self.number) == restarts + self.late_kills
        assert {path.name for path in self.folder.iterdir()} >= {"checkpoints", "config.yaml", "hparams.yaml"}
        if (self.folder / "checkpoints/last.ckpt").is_dir():
            np.testing.assert_equal(curves(self.whole), curves(self.folder))
        else:
            assert_same_run(self.whole, self.folder)
        print(f"  job {self.number} is the undisturbed run, bit for bit", flush=True)


def prepare(bench: Bench) -> None:
    """The shared folder as a user has it: the run's configuration, and the text prepared on the login node."""
    (SHARED / "run.yaml").write_text(yaml.safe_dump(RUN))
    for name in ("ddp", "fsdp2"):
        (SHARED / f"{name}.yaml").write_text((ROOT / f"configs/trainer/{name}.yaml").read_text())
    LOGS.mkdir()
    (SHARED / "data.yaml").write_text(yaml.safe_dump({"data": RUN["data"]}))
    print(bench.cluster("llp", "prepare", "--config", "data.yaml"), flush=True)
    bench.prepared = _changes(SHARED / "cache")


def _changes(folder: Path) -> dict[Path, int]:
    """When each file was changed."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def equal(bench: Bench) -> None:
    """Two nodes with one and two tasks each, DDP and FSDP2: the figures of one process."""
    expected, expected_scores = curves(bench.single()), bench.scores()
    for strategy, flags in (("ddp", DDP), ("fsdp2", FSDP2)):
        one_node = curves(bench.whole(f"{strategy}-1x2", *flags, nodes=1, tasks=2))
        np.testing.assert_equal(curves(bench.whole(f"{strategy}-2x1", *flags)), one_node)
        what = f"{strategy.upper()}, 2 nodes x 1 task, against 1 node x 2 tasks"
        bench.results.equalities.append([what, "all curves bit for bit"])
        for tasks in (1, 2):
            name = f"{strategy}-2x{tasks}"
            got = curves(bench.whole(name, *flags, tasks=tasks))
            furthest = 0.0
            for tag in ("train/loss", "train/grad_norm", "train/tokens", "val/loss"):
                assert [step for step, _ in got[tag]] == [step for step, _ in expected[tag]], tag
                pairs = [(a, b) for (_, a), (_, b) in zip(got[tag], expected[tag], strict=True)]
                furthest = max(furthest, *(abs(a - b) / abs(b) for a, b in pairs))
            assert len(got["train/loss"]) == STEPS
            assert furthest < 1e-5, furthest
            sizes, batches = bench.sizes(2, tasks)
            world = ["--trainer.num_nodes", "2", "--trainer.devices", str(tasks)]
            scores = bench.scores("srun", *sizes, flags=[*flags, *batches, *world])
            pairs = [
                (a[key], b[key]) for a, b in zip(scores, expected_scores, strict=True) for key in ("loss", "tokens")
            ]
            difference = max(abs(a - b) / abs(b) for a, b in pairs)
            assert difference < 1e-6, difference
            what = f"{strategy.upper()}, 2 nodes x {tasks} {'task' if tasks == 1 else 'tasks'}, against one process"
            test = f"to {difference:.0e}" if difference else "to the last bit"
            outcome = f"{STEPS} steps' losses and gradient norms to {furthest:.0e}, the test's figures {test}"
            bench.results.equalities.append([what, outcome])


def preempted(bench: Bench) -> None:
    """A more urgent job takes both nodes: the run saves, returns to the queue, and goes on from there."""
    for name, flags in (("ddp-2x1", DDP), ("fsdp2-2x1", FSDP2)):
        job = Job(bench, flags, name)
        saved = job.train()
        urgent(bench)
        state, after = job.ends(saved, GRACE_S + 20)
        assert state == "PENDING", state
        said = job.said("Resume from step")
        assert "Traceback" not in job.log()
        job.completes(restarts=1)
        bench.add_fault(f"pre-emption ({name})", state, after, GRACE_S + 20, said)


def preempted_by_term(bench: Bench) -> None:
    """On a cluster that sends SIGTERM in place of the job's signal."""
    bench.cluster.configure(without="SlurmctldParameters")
    job = Job(bench)
    saved = job.train()
    urgent(bench)
    state, after = job.ends(saved, GRACE_S + 20)
    bench.cluster.configure()
    assert state == "PENDING", state
    said = job.said("Resume from step")
    bench.add_fault("pre-emption by SIGTERM alone", state, after, GRACE_S + 20, said)
    job.completes(restarts=1)


def preempted_twice(bench: Bench) -> None:
    """The second time while the run starts again."""
    job = Job(bench)
    saved = job.train()
    urgent(bench)
    job.ends(saved, GRACE_S + 20)
    job.cluster.wait_for_state(job.number, "RUNNING")
    wait_for("its tasks run", lambda: bench.cluster.tasks("node1"))
    time.sleep(1)  # while they import
    urgent(bench)
    state, after = job.ends(saved, GRACE_S + 20)
    assert state == "PENDING", state
    job.completes(restarts=2)
    bench.add_fault("a second pre-emption while the job starts again", state, after, GRACE_S + 20)


def urgent(bench: Bench) -> None:
    """A job that pre-empts others on both nodes."""
    bench.cluster("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 2")


def cancelled(bench: Bench) -> None:
    """`scancel` saves the step and ends the job."""
    job = Job(bench)
    saved = job.train()
    bench.cluster("scancel", job.number)
    state, after = job.ends(saved, KILL_WAIT_S + 20)
    assert state == "CANCELLED", state
    job.said("SIGTERM: finishing and saving the current step")
    said = job.said("Resume from step")
    bench.add_fault("`scancel <job>`", state, after, KILL_WAIT_S + 20, said)
    job.resume()
    job.completes(restarts=1)


def compared(bench: Bench) -> None:
    """A comparison as an array of one-node jobs: the records of local workers, to the byte."""
    shutil.copytree(ROOT / "configs", SHARED / "configs")
    script = SHARED / "configs/slurm/compare.sbatch"
    adapted = script.read_text().replace("--gpus-per-node=1", "--gpus-per-node=0").replace("-task=8", "-task=1")
    script.write_text(adapted)  # as the documentation asks for
    specification = yaml.safe_load((ROOT / "configs/compare/smoke.yaml").read_text())
    specification["shared"]["data"]["init_args"] |= {**RUN["data"]["init_args"], "window_len": 128}
    specification["shared"]["trainer"]["limit_val_batches"] = 1
    specification |= {"name": "tiny", "steps": 8, "seeds": [0], "scoring_stride": 128}
    (SHARED / "configs/compare/tiny.yaml").write_text(yaml.safe_dump(specification))
    command = ["llp", "compare", str(SHARED / "configs/compare/tiny.yaml")]
    answer = bench.cluster(*command, "--slurm", "2")
    array = answer.split()[-1]
    wait_for(f"array {array} has ended", lambda: not bench.cluster("squeue", "-h", "-j", array, fails=True), 1200)
    local = SHARED / "local"
    local.mkdir()
    bench.cluster("env", "-C", str(local), *command, "--workers", "1")  # all cores, as a task has: threads are recorded
    folder = Path("lightning_logs/comparisons/tiny")
    expected, found = (
        {path.name: path.read_bytes() for path in sorted((where / folder / "records").glob("*.json"))}
        for where in (local, SHARED)
    )
    assert len(expected) == 2
    assert found.keys() == expected.keys()
    for name, record in expected.items():
        assert found[name] == record, f"{name}: {found[name].decode()}\n{record.decode()}"
    assert len(list((SHARED / folder / "logs").glob(f"slurm-{array}_*.log"))) == 2
    row = ["`llp compare SPEC --slurm 2`, an array of one-node jobs", "the records of `--workers 1`, to the byte"]
    bench.results.equalities.append(row)


def own_name_on_loopback(bench: Bench) -> None:
    """Where a node's name is 127.0.1.1 to itself, gloo needs to be told its device."""
    bench.whole("ddp-2x1", *DDP)
    bench.cluster.name_loopback()
    job = Job(bench)
    bench.cluster.wait_for_state(job.number, "RUNNING")
    state, after = job.ends(0, 120)
    assert state == "FAILED", state
    said = job.said("finds no other one at 127.0.1.1", "GLOO_SOCKET_IFNAME")
    assert "Traceback" not in job.log()
    Job(bench, sbatch=["--export=ALL,GLOO_SOCKET_IFNAME=eth0"]).completes(restarts=0)
    bench.cluster.name_addresses()
    bench.add_fault("a node's own name stands for 127.0.1.1 there", state, after, 120, said)
    bench.results.faults[-1][-1] = "`export GLOO_SOCKET_IFNAME=…`"


def task_killed(bench: Bench) -> None:
    """`kill -9` of one task."""
    job = Job(bench)
    saved = job.train()
    for pid in bench.cluster.tasks("node2"):
        os.kill(pid, signal.SIGKILL)
    state, after = job.ends(saved, 20)
    assert state == "FAILED", state
    said = job.said("error: node2: task 1: Killed")
    job.resume()
    job.completes(restarts=1)
    bench.add_fault("a task is killed (`kill -9`, or for its memory)", state, after, 20, said)


def node_lost(bench: Bench) -> None:
    """A node loses power: first the one without, then the one with the batch script."""
    lost = (
        ("node2", "a node is lost", ["did not respond", "rank 1"]),
        ("node1", "the node of the batch script is lost", ["start 2 on node[1-2]"]),
    )
    for node, what, words in lost:
        job = Job(bench)
        saved = job.train()
        bench.cluster.kill_node(node)
        state, after = job.ends(saved, NODE_LOST_S + 60)
        bench.cluster.start_node(node)
        if node == "node2":  # of the other one SLURM's own log says so, in which the job has no part
            job.said("Node failure on node2")
        bench.add_fault(what, state, after, NODE_LOST_S + 60)
        job.late_kills_may_come = True
        job.resume()
        job.completes(restarts=1)
        bench.results.faults[-1][-2] = job.said(*words)


def link_cut(bench: Bench) -> None:
    """The network between the nodes fails in the middle of a step, for five seconds, and for good."""
    job = Job(bench)
    job.train()
    bench.cluster.cut("node2")
    time.sleep(5)
    bench.cluster.join("node2")
    job.completes(restarts=0)
    bench.results.faults.append(["the network to a node is cut for 5 s", "waits and goes on", "", "", NOTHING])
    job = Job(bench)
    saved = job.train()
    bench.cluster.cut("node2")
    state, after = job.ends(saved, NODE_LOST_S + 60)
    bench.cluster.join("node2")
    job.late_kills_may_come = True
    said = job.said("rank 1 did not respond")
    bench.add_fault("the network to a node is cut for good", state, after, NODE_LOST_S + 60, said)
    job.resume()
    job.completes(restarts=1)


def controller_restarted(bench: Bench) -> None:
    """The controller is killed and comes back."""
    job = Job(bench)
    job.train()
    bench.cluster.kill_controller()
    time.sleep(8)
    bench.cluster.start_controller()
    wait_for("the controller answers", lambda: bench.cluster.state(job.number))
    job.completes(restarts=0)
    bench.results.faults.append(
        ["the controller is killed and comes back 8 s later", "goes on", "", "", "nothing to do"]
    )


def disk_full(bench: Bench) -> None:
    """The shared disk has no room for another checkpoint."""

    def fill() -> None:
        used = sum(path.lstat().st_blocks * 512 for path in SHARED.rglob("*"))
        bench.cluster("mount", "-o", f"remount,size={used + 65536}", str(SHARED))

    def make_room() -> None:
        bench.cluster("mount", "-o", "remount,size=4g", str(SHARED))

    fails_to_write(bench, "the shared disk is full", "No space left on device", fill, make_room)


def disk_read_only(bench: Bench) -> None:
    """The shared disk refuses to be written."""
    make_read_only, make_writable = (
        partial(method, LOGS) for method in (bench.cluster.make_read_only, bench.cluster.make_writable)
    )
    fails_to_write(bench, "the shared disk is read-only", "Read-only file system", make_read_only, make_writable)


def fails_to_write(bench: Bench, what: str, words: str, begin: Callable[[], Any], end: Callable[[], Any]) -> None:
    """A job that can't write ends with one message that has these words, and goes on when it can again."""
    job = Job(bench)
    saved = job.train()
    begin()
    state, after = job.ends(saved, 60)
    end()
    assert state == "FAILED", state
    said = job.said(words, "llp fit: error")
    assert "Traceback" not in job.log()
    job.resume()
    job.completes(restarts=1)
    bench.add_fault(what, state, after, 60, said)


def disk_slow(bench: Bench) -> None:
    """A checkpoint takes longer than `stall.timeout_s`."""
    job = Job(bench)
    saved = job.train()
    (SHARED / SLOW_DISK).write_text("600")
    state, after = job.ends(saved, 2 * STALL_S + 30)
    (SHARED / SLOW_DISK).unlink()
    assert state == "FAILED", state
    said = job.said(f"stall.timeout_s = {STALL_S}", "rank 0 was still writing")
    job.resume()
    job.completes(restarts=1)
    bench.add_fault("a checkpoint takes longer than `stall.timeout_s`", state, after, 2 * STALL_S + 30, said)


def time_limit(bench: Bench) -> None:
    """The time limit comes while a checkpoint is being written: there is time for it, or there isn't."""
    for left_s, state_then, what in ((110, "PENDING", "is near while"), (1, "TIMEOUT", "comes while")):
        job = Job(bench)
        saved = job.train()
        (SHARED / SLOW_DISK).write_text(
            "1" if state_then == "PENDING" else "4"
        )  # thrice a checkpoint; a validation writes two
        is_written = (job.folder / "checkpoints/.last.ckpt.unfinished").exists
        wait_for("a checkpoint is being written", is_written)
        end = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + left_s))
        bench.cluster("scontrol", "update", f"JobId={job.number}", f"EndTime={end}")
        state, after = job.ends(saved, 120)
        (SHARED / SLOW_DISK).unlink()
        bench.add_fault(f"the time limit {what} a checkpoint is being written", state, after, 120)
        assert state == state_then, state
        job.resume()
        bench.cluster("scontrol", "update", f"JobId={job.number}", "TimeLimit=60")
        job.completes(restarts=1)


def random_cuts(bench: Bench) -> None:
    """Five cuts of one run, of a task, a node or its network, at random."""
    job, rng = Job(bench), random.Random(bench.seed)
    cuts = []
    for _ in range(5):
        saved = job.train(5)
        time.sleep(rng.uniform(0, 0.3))
        kind, node = rng.choice(["task", "node", "network"]), rng.choice(NODES)
        cuts.append(f"{kind} of {node} after step {saved}" if kind != "node" else f"{node} after step {saved}")
        print(f"  cut: {cuts[-1]}", flush=True)
        if kind == "task":
            for pid in bench.cluster.tasks(node):
                os.kill(pid, signal.SIGKILL)
        elif kind == "node":
            bench.cluster.kill_node(node)
        else:
            bench.cluster.cut(node)
        state, _ = job.ends(saved, NODE_LOST_S + STALL_S + 60)
        assert state != "COMPLETED", "the run was over before it was cut"
        if kind == "node":
            bench.cluster.start_node(node)
        elif kind == "network":
            bench.cluster.join(node)
        job.late_kills_may_come = job.late_kills_may_come or kind != "task"
        job.resume()
    job.completes(restarts=5)
    what = f"five cuts of one run (seed {bench.seed}): {', '.join(cuts)}"
    bench.results.equalities.append([what, "the undisturbed run bit for bit"])


CASES: dict[str, Callable[[Bench], None]] = {
    case.__name__: case
    for case in (
        equal,
        preempted,
        preempted_by_term,
        preempted_twice,
        cancelled,
        own_name_on_loopback,
        task_killed,
        node_lost,
        link_cut,
        controller_restarted,
        disk_full,
        disk_read_only,
        disk_slow,
        time_limit,
        random_cuts,
        compared,
    )
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--table", type=Path, help="a file for the tables, in Markdown")
    parser.add_argument("--seed", type=int, default=0, help="of the random cuts")
    parser.add_argument("--forked", action="store_true", help="fork tasks from an imported process: for a busy machine")
    options = parser.parse_args()
    status = run_in_namespaces()
    if status is not None:
        sys.exit(status)
    end_at_signals()
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # a resumed run's events come again: no news
    os.chdir("/")
    table = options.table and Path(options.table).absolute()
    cluster = Cluster(options.forked)
    bench = Bench(cluster, options.seed)
    started = time.monotonic()
    try:
        cluster.start()
        prepare(bench)
        for name in options.cases:
            print(f"\n# {name}", flush=True)
            before = time.monotonic()
            CASES[name](bench)
            assert _changes(SHARED / "cache") == bench.prepared, "a job has prepared the text once more"
            print(f"{name}: passed in {time.monotonic() - before:.0f} s", flush=True)
    except BaseException:
        for log in [*SLURM.glob("*.log"), *sorted(LOGS.glob("slurm-*.log"))]:
            print(f"--- {log.name}\n{log.read_text()[-3000:]}")
        print(cluster("scontrol", "show", "job", fails=True))
        raise
    finally:
        print(f"\n{bench.results.markdown()}")
        if table:
            table.write_text(bench.results.markdown())
    print(f"All of it: {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
