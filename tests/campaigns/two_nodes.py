"""The batch files on a SLURM of two nodes, undisturbed and with everything that can go wrong (docs/slurm.md).

It takes some 25 minutes, installs Debian's packages and needs root:

    python tests/campaigns/two_nodes.py [--cases equal preempted …] [--seed 0]

The nodes are namespaces of this machine (`slurm_cluster.py`); nothing is left of them at the end.
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
from pathlib import Path
from typing import Any

import numpy as np
import yaml

sys.path.insert(0, str(Path(__file__).parents[1]))
from campaigns.pace import SLOW_DISK
from campaigns.slurm_cluster import (
    ENDED,
    GRACE_S,
    KILL_WAIT_S,
    NODES,
    ROOT,
    SHARED,
    SLURM,
    Cluster,
    end_at_signals,
    run_in_namespaces,
    wait_for,
)
from campaigns.slurm_job import ACROSS_NODES, FLAGS, LOGS, RUN, STALL_S, STEPS, Job, prepare, sizes, whole
from helpers.runs import curves


def strike(
    cluster: Cluster,
    fault: Callable[[Job], object],
    within_s: float,
    state: str,
    said: Iterable[str] = (),
    undo: Callable[[], object] = lambda: None,
    strategy: str = "ddp",
    loses_node: bool = False,
) -> None:
    """Let a fault meet a run in its middle.

    Args:
        cluster: Where it runs.
        fault: What happens.
        within_s: In how many seconds SLURM must have ended the job or returned it to the queue.
        state: The job's state then.
        said: Words of a line in the log.
        undo: Called once the job has ended.
        strategy: Of the run.
        loses_node: Whether a node stops answering, so that the next start may be killed once more.
    """
    job = Job(cluster, strategy)
    saved = job.train()
    fault(job)
    job.ends(saved, within_s, state, *(["REQUEUED"] if state == "PENDING" else []))
    undo()
    if said:
        job.says(*said)
    if not loses_node:
        assert not any("Traceback" in line for line in job.lines()), job.lines()
    job.late_kills_may_come = loses_node
    job.completes()


# Undisturbed


def equal(cluster: Cluster) -> None:
    """Two nodes with one and two tasks each, DDP and FSDP2, have the metrics of one process."""
    single = LOGS / "single"
    cluster("llp", "fit", "--config", "run.yaml", *sizes(1, 1)[1], "--name", "single")
    expected, expected_rows = curves(single), _test(cluster, single)
    for strategy in FLAGS:
        np.testing.assert_equal(curves(whole(cluster, strategy)), curves(whole(cluster, strategy, nodes=1, tasks=2)))
        for tasks in (1, 2):
            got = curves(whole(cluster, strategy, tasks=tasks))
            assert len(got["train/loss"]) == STEPS
            for tag in ("train/loss", "train/grad_norm", "train/tokens", "val/loss"):
                np.testing.assert_allclose(got[tag], expected[tag], rtol=1e-5)
            srun, batches = sizes(2, tasks)
            world = ["--trainer.num_nodes", "2", "--trainer.devices", str(tasks)]
            rows = _test(cluster, single, "srun", *srun, flags=[*FLAGS[strategy], *batches, *world])
            for row, of_one in zip(rows, expected_rows, strict=True):
                assert row["tokens"] == of_one["tokens"]
                np.testing.assert_allclose(row["loss"], of_one["loss"], rtol=1e-6)


def _test(cluster: Cluster, run: Path, *srun: str, flags: Iterable[str] = ()) -> list[dict[str, Any]]:
    cluster(*srun, "llp", "test", "--ckpt_path", str(run), *flags)
    rows: list[dict[str, Any]] = json.loads((run / "test.json").read_text())["rows"]
    return rows


def compared(cluster: Cluster) -> None:
    """A comparison as an array of one-node jobs has the records of local workers, to the byte."""
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
    array = cluster(*command, "--slurm", "2").split()[-1]
    wait_for(f"array {array} has ended", lambda: not cluster("squeue", "-h", "-j", array, fails=True), 1200)
    local = SHARED / "local"
    local.mkdir()
    cluster("env", "-C", str(local), *command, "--workers", "1")
    folder = Path("lightning_logs/comparisons/tiny")
    expected, found = (
        {path.name: path.read_bytes() for path in (where / folder / "records").glob("*.json")}
        for where in (local, SHARED)
    )
    assert len(expected) == 2
    assert found == expected
    assert len(list((SHARED / folder / "logs").glob(f"slurm-{array}_*.log"))) == 2


# The cluster ends or interrupts the job


def _urgent(cluster: Cluster) -> None:
    """A job that pre-empts others on both nodes."""
    cluster("sbatch", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null", "--wrap=sleep 2")


def preempted(cluster: Cluster) -> None:
    """A more urgent job takes both nodes: the run saves, returns to the queue, and resumes."""
    for strategy in FLAGS:
        strike(cluster, lambda _: _urgent(cluster), GRACE_S + 20, "PENDING", ["Resume from step"], strategy=strategy)


def preempted_by_term(cluster: Cluster) -> None:
    """On a cluster that sends SIGTERM instead of the job's signal."""
    cluster.configure(without="SlurmctldParameters")
    strike(cluster, lambda _: _urgent(cluster), GRACE_S + 20, "PENDING", ["Resume from step"], cluster.configure)


def preempted_twice(cluster: Cluster) -> None:
    """The second time while the run starts again."""
    job = Job(cluster)
    saved = job.train()
    _urgent(cluster)
    job.ends(saved, GRACE_S + 20, "PENDING", "REQUEUED")
    cluster.wait_for_state(job.number, "RUNNING")
    wait_for("its tasks run", lambda: cluster.tasks("node1"))
    time.sleep(1)  # while they import
    _urgent(cluster)
    job.ends(saved, GRACE_S + 20, "PENDING", "REQUEUED")
    job.completes(restarts=2)


def cancelled(cluster: Cluster) -> None:
    """`scancel` saves the step and ends the job."""
    said = ["Resume from step"]
    strike(cluster, lambda job: cluster("scancel", job.number), KILL_WAIT_S + 20, "CANCELLED", said)


def time_limit(cluster: Cluster) -> None:
    """The time limit comes while a checkpoint is being written: there is time for it, or there isn't."""
    for left_s, write_s, state in ((110, 1, "PENDING"), (1, 4, "TIMEOUT")):  # a checkpoint takes three such writes
        job = Job(cluster)
        saved = job.train()
        (SHARED / SLOW_DISK).write_text(str(write_s))
        wait_for("a checkpoint is being written", (job.folder / "checkpoints/.last.ckpt.unfinished").exists)
        end = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + left_s))
        cluster("scontrol", "update", f"JobId={job.number}", f"EndTime={end}")
        job.ends(saved, 120, state)
        (SHARED / SLOW_DISK).unlink()
        job.resume()
        cluster("scontrol", "update", f"JobId={job.number}", "TimeLimit=60")
        job.completes()


def controller_restarted(cluster: Cluster) -> None:
    """The controller is killed and comes back."""
    job = Job(cluster)
    job.train()
    cluster.kill_controller()
    time.sleep(8)
    cluster.start_controller()
    wait_for("the controller answers", lambda: cluster.state(job.number))
    job.completes(restarts=0)


# Something breaks


def task_killed(cluster: Cluster) -> None:
    """`kill -9` of one task."""
    strike(cluster, lambda _: _kill_tasks(cluster, "node2"), 20, "FAILED", ["error: node2: task 1: Killed"])


def _kill_tasks(cluster: Cluster, node: str) -> None:
    for pid in cluster.tasks(node):
        os.kill(pid, signal.SIGKILL)


def node_lost(cluster: Cluster) -> None:
    """A node loses power: first the one without, then the one with the batch script."""
    for node, said in (("node2", ["did not respond", "rank 1"]), ("node1", [])):
        kill, start = (lambda _, node=node: cluster.kill_node(node)), (lambda node=node: cluster.start_node(node))
        strike(cluster, kill, ACROSS_NODES, "PENDING", said, start, loses_node=True)


def link_cut(cluster: Cluster) -> None:
    """The network between the nodes fails in the middle of a step, for five seconds, and for good."""
    job = Job(cluster)
    job.train()
    cluster.cut("node2")
    time.sleep(5)
    cluster.join("node2")
    job.completes(restarts=0)
    cut, join = (lambda _: cluster.cut("node2")), (lambda: cluster.join("node2"))
    strike(cluster, cut, ACROSS_NODES, "PENDING", ["rank 1 did not respond"], join, loses_node=True)


def own_name_on_loopback(cluster: Cluster) -> None:
    """Where a node's name is 127.0.1.1 to itself, gloo must be told its device."""
    whole(cluster, "ddp")
    cluster.name_loopback()
    job = Job(cluster)
    cluster.wait_for_state(job.number, "RUNNING")
    job.ends(0, 120, "FAILED")
    job.says("connectFullMesh failed", "127.0.1.1")
    Job(cluster, sbatch=["--export=ALL,GLOO_SOCKET_IFNAME=eth0"]).completes(restarts=0)
    cluster.name_addresses()


def disk_full(cluster: Cluster) -> None:
    """The shared disk has no room for another checkpoint."""

    def fill(_: Job) -> None:
        used = sum(path.lstat().st_blocks * 512 for path in SHARED.rglob("*"))
        cluster("mount", "-o", f"remount,size={used + 65536}", str(SHARED))

    def make_room() -> None:
        cluster("mount", "-o", "remount,size=4g", str(SHARED))

    strike(cluster, fill, 60, "FAILED", ["No space left on device", "llp fit: error"], make_room)


def disk_read_only(cluster: Cluster) -> None:
    """The shared disk refuses to be written."""
    refuse, allow = (lambda _: cluster.make_read_only(LOGS)), (lambda: cluster.make_writable(LOGS))
    strike(cluster, refuse, 60, "FAILED", ["Read-only file system", "llp fit: error"], allow)


def disk_slow(cluster: Cluster) -> None:
    """A checkpoint takes longer than `stall.timeout_s`."""
    slow = SHARED / SLOW_DISK
    said = [f"stall.timeout_s = {STALL_S}", "no rank made progress"]
    strike(cluster, lambda _: slow.write_text("600"), 2 * STALL_S + 30, "FAILED", said, slow.unlink)


def random_cuts(cluster: Cluster, seed: int) -> None:
    """Five cuts of one run, of a task, a node or its network, at random."""
    job, rng = Job(cluster), random.Random(seed)
    begin = {"task": _kill_tasks, "node": Cluster.kill_node, "network": Cluster.cut}
    end = {"task": lambda cluster, node: None, "node": Cluster.start_node, "network": Cluster.join}
    for _ in range(5):
        saved = job.train(5)
        time.sleep(rng.uniform(0, 0.3))
        kind, node = rng.choice(list(begin)), rng.choice(NODES)
        print(f"  cut: {kind} of {node} after step {saved}", flush=True)
        begin[kind](cluster, node)
        job.ends(
            saved, ACROSS_NODES + STALL_S, "PENDING", "REQUEUED", *(state for state in ENDED if state != "COMPLETED")
        )
        end[kind](cluster, node)
        job.late_kills_may_come = job.late_kills_may_come or kind != "task"
        job.resume()
    job.completes(restarts=5)


CASES: dict[str, Callable[..., None]] = {
    case.__name__: case
    for case in (
        *(equal, preempted, preempted_by_term, preempted_twice, cancelled, own_name_on_loopback, task_killed),
        *(node_lost, link_cut, controller_restarted, disk_full, disk_read_only, disk_slow, time_limit),
        *(random_cuts, compared),
    )
}


def _changes(folder: Path) -> dict[Path, int]:
    """When each file was changed."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--seed", type=int, default=0, help="of the random cuts")
    options = parser.parse_args()
    status = run_in_namespaces()
    if status is not None:
        sys.exit(status)
    end_at_signals()
    logging.getLogger("tensorboard").setLevel(logging.ERROR)  # a resumed run's events come again
    os.chdir("/")
    cluster = Cluster()
    started = time.monotonic()
    try:
        cluster.start()
        prepare(cluster)
        prepared = _changes(SHARED / "cache")
        for name in options.cases:
            print(f"\n# {name}", flush=True)
            before = time.monotonic()
            CASES[name](cluster, *([options.seed] if name == "random_cuts" else []))
            assert _changes(SHARED / "cache") == prepared, "a job has prepared the text once more"
            print(f"{name}: passed in {time.monotonic() - before:.0f} s", flush=True)
    except BaseException:
        for log in [*SLURM.glob("*.log"), *sorted(LOGS.glob("slurm-*.log"))]:
            print(f"--- {log.name}\n{log.read_text()[-3000:]}")
        print(cluster("scontrol", "show", "job", fails=True))
        raise
    print(f"\n{len(options.cases)} cases passed in {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    main()
