"""A training run killed at random moments and resumed each time, compared with one that was left alone.

Not part of the default tests, since fifty kills take some ten minutes:

    python tests/kill_and_resume.py [--kills 50] [--devices 1] [--seed 0]
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import yaml

from helpers.runs import assert_same_run
from llp.training import checkpoints


def configuration(folder: Path, devices: int) -> dict:
    model = {"dim": 32, "n_layers": 2, "n_heads": 2, "segment_len": 16, "dropout": 0.1, "schedule": "halving"}
    text = {"tokenizer": "datamodules.Bytes", "window_len": 64, "batch_size": 4, "cache_dir": str(folder / "cache")}
    return {
        "model": {"class_path": "llp.LLP", "init_args": model},
        "data": {"class_path": "datamodules.PythonReference", "init_args": text},
        "trainer": {
            "accelerator": "cpu",
            "devices": devices,
            "strategy": "ddp" if devices > 1 else "auto",
            "max_steps": 3000,
            "val_check_interval": 500,
            "limit_val_batches": 10,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        },
        "checkpoint": {"every_n_train_steps": 2, "save_top_k": 2},
    }


class Run:
    """A run by its name; `start` begins it or goes on with it."""

    def __init__(self, work: Path, name: str) -> None:
        self.work, self.name = work, name
        self.checkpoints = work / f"lightning_logs/{name}/checkpoints"
        self.log = work / f"{name}.log"

    def start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "llp", "fit", "--config", "run.yaml", "--name", self.name]
        with self.log.open("wb") as log:
            return subprocess.Popen(
                [*command, "--ckpt_path", "auto"], cwd=self.work, stdout=log, stderr=log, start_new_session=True
            )

    def saved_step(self) -> int:
        """The step of the newest whole checkpoint; 0: there is none."""
        path = next(checkpoints.newest_first(self.checkpoints), None)
        return 0 if path is None else checkpoints.read(path)["global_step"]

    def leftovers(self) -> set[tuple[str, int]]:
        """Unfinished files, by name and inode."""
        return {(path.name, path.stat().st_ino) for path in self.checkpoints.glob(".*")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        (work / "run.yaml").write_text(yaml.safe_dump(configuration(work, options.devices)))
        whole = Run(work, "whole")
        assert whole.start().wait() == 0, whole.log.read_text()
        killed_runs = []
        kills = unfinished = 0
        while kills < options.kills:  # a run that reaches its end before is followed by another
            run = Run(work, f"killed-{len(killed_runs)}")
            killed_runs.append(run)
            at_end = False
            while not at_end:
                before, step = run.leftovers(), run.saved_step()
                process = run.start()
                at_end = not kill_at_random(process, rng, spare=kills >= options.kills)
                if at_end:
                    assert process.returncode == 0, run.log.read_text()
                    assert not run.leftovers(), run.leftovers()
                else:
                    kills += 1
                    unfinished += bool(run.leftovers())
                    went_on = "Restored all states" in run.log.read_text()
                    assert not (went_on and before & run.leftovers()), "a temporary file was left by the next start"
                    print(f"kill {kills}: {run.name} at step {step:,}, then at {run.saved_step():,}", flush=True)
                assert run.saved_step() >= step, f"a checkpoint was lost: step {step}, then {run.saved_step()}"
        for run in killed_runs:
            assert_same_run(work / "lightning_logs/whole", work / "lightning_logs" / run.name)
    print(
        f"{kills} kills, {unfinished} of them amid the writing of a checkpoint, in {len(killed_runs)} run(s): each is "
        "the uninterrupted one bit for bit, no checkpoint was lost, and no temporary file outlived the next start."
    )


def kill_at_random(process: subprocess.Popen[bytes], rng: random.Random, spare: bool) -> bool:
    """Kill the process and those it has started, unless it ends before or is to be spared; returns whether it did."""
    try:
        process.wait(timeout=None if spare else rng.uniform(1.0, 16.0))
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        time.sleep(0.1)  # for the others of its group
        return True
    return False


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
