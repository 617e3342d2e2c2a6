"""The batch files on a SLURM of two nodes, left alone and with everything that can go wrong.

Not part of the default tests, since it takes some 25 minutes, installs Debian's packages and wants to be root:

    python tests/two_nodes.py [--cases equal preempted …] [--table FILE] [--seed 0]

The nodes are namespaces of this machine, see `helpers.slurm_cluster`; nothing is left of them at the end.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from helpers.runs import assert_same_run, curves
from helpers.slurm_cluster import (
    ROOT,
    SHARED,
    SLURM,
    Cluster,
    end_at_signals,
    run_in_namespaces,
    wait_for,
)

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

    def log(self, job: str) -> str:
        path = LOGS / f"slurm-{job}.log"
        return path.read_text() if path.exists() else ""

    def whole(self, name: str, *arguments: str, nodes: int = 2, tasks: int = 1) -> Path:
        """The folder of a run that nothing disturbs, carried out when it is first asked for."""
        if not (LOGS / name).exists():
            print(f"The undisturbed run {name}", flush=True)
            job = self.submit(*arguments, "--name", name, nodes=nodes, tasks=tasks)
            assert self.cluster.finish(job) == "COMPLETED", self.log(job)
        return LOGS / name

    def single(self) -> Path:
        """The folder of the same run in one process on the head, without SLURM."""
        if not (LOGS / "single").exists():
            print("The run of one process", flush=True)
            _, batches = self.sizes(1, 1)
            self.cluster("llp", "fit", "--config", "run.yaml", *batches, "--name", "single")
        return LOGS / "single"

    def scores(self, *srun: str, flags: Iterable[str] = ()) -> list[dict[str, Any]]:
        """The figures of `llp test` on the one process's checkpoint."""
        self.cluster(*srun, "llp", "test", "--ckpt_path", str(self.single()), *flags)
        return json.loads((self.single() / "test.json").read_text())["rows"]


def prepare(bench: Bench) -> None:
    """The shared folder as a user has it: the run's configuration, and the text prepared on the login node."""
    (SHARED / "run.yaml").write_text(yaml.safe_dump(RUN))
    for name in ("ddp", "fsdp2"):
        (SHARED / f"{name}.yaml").write_text((ROOT / f"configs/trainer/{name}.yaml").read_text())
    LOGS.mkdir()
    (SHARED / "data.yaml").write_text(yaml.safe_dump({"data": RUN["data"]}))
    print(bench.cluster("llp", "prepare", "--config", "data.yaml"), flush=True)


def equal(bench: Bench) -> None:
    """Two nodes with one and two tasks each, DDP and FSDP2: the figures of one process."""
    expected, expected_scores = curves(bench.single()), bench.scores()
    for strategy, flags in (("ddp", DDP), ("fsdp2", FSDP2)):
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
            what = f"{strategy.upper()}, 2 nodes x {tasks} task(s), against one process"
            outcome = f"{STEPS} steps: losses and gradient norms to {furthest:.0e}; test of {len(scores)} rows to {difference:.0e}"
            bench.results.equalities.append([what, outcome])


CASES: dict[str, Callable[[Bench], None]] = {"equal": equal}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--table", type=Path, help="a file for the tables, in Markdown")
    parser.add_argument("--seed", type=int, default=0, help="of the random cuts")
    options = parser.parse_args()
    status = run_in_namespaces()
    if status is not None:
        sys.exit(status)
    end_at_signals()
    os.chdir("/")
    table = options.table and Path(options.table).absolute()
    cluster = Cluster()
    bench = Bench(cluster, options.seed)
    started = time.monotonic()
    try:
        cluster.start()
        prepare(bench)
        for name in options.cases:
            print(f"\n# {name}", flush=True)
            before = time.monotonic()
            CASES[name](bench)
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
