"""The batch file for real: a SLURM of one node on loopback runs it with two tasks, signals it, sees it requeue and end.

Not part of the default tests, since it takes some eight minutes, installs Debian's packages and wants to be root:

    python tests/slurm_end_to_end.py

Everything is taken down at the end; the packages stay.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import yaml

from helpers.runs import assert_same_run

ROOT = Path(__file__).parent.parent
PYTHON_BIN = Path(sys.executable).parent
RUN = {
    "model": {
        "class_path": "llp.LLP",
        "init_args": {"dim": 32, "n_layers": 2, "n_heads": 2, "segment_len": 32, "dropout": 0.1, "schedule": "halving"},
    },
    "data": {
        "class_path": "datamodules.PythonReference",
        "init_args": {"tokenizer": "datamodules.Bytes", "window_len": 256, "batch_size": 4},
    },
    "trainer": {
        "accelerator": "cpu",
        "strategy": "ddp",
        "max_steps": 400,
        "val_check_interval": 200,
        "limit_val_batches": 10,
        "log_every_n_steps": 1,
        "enable_progress_bar": False,
    },
}


def configuration(folder: Path, host: str, ports: tuple[int, int]) -> str:
    return f"""
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
ReturnToService=2
NodeName={host} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(what: str, condition: Callable[[], object], seconds: float = 120.0) -> None:
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > seconds:
            raise TimeoutError(f"{what}: not within {seconds:.0f} s")
        time.sleep(0.2)
    print(f"{what}: after {time.monotonic() - started:.1f} s", flush=True)


class Cluster:
    """Munge, a controller and a daemon, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        host = socket.gethostname().partition(".")[0]
        (folder / "slurm.conf").write_text(configuration(folder, host, (free_port(), free_port())))
        (folder / "state").mkdir()
        (folder / "munge.key").write_bytes(os.urandom(1024))
        (folder / "munge.key").chmod(0o400)
        path = os.pathsep.join([str(PYTHON_BIN), os.environ["PATH"]])
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf"), "PATH": path}
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        options = ("key-file", "socket", "pid-file", "log-file", "seed-file")
        files = [f"--{option}={self.folder}/munge.{option.partition('-')[0]}" for option in options]
        self._daemon("munged", "--foreground", "--force", *files)
        wait_for("munge answers", (self.folder / "munge.socket").exists)
        self._daemon("slurmctld", "-D")
        self._daemon("slurmd", "-D")
        wait_for("the node is idle", lambda: "idle" in self("sinfo", "-h", "-o", "%T"))

    def _daemon(self, *command: str) -> None:
        with (self.folder / f"{command[0]}.out").open("wb") as out:
            self.processes.append(
                subprocess.Popen(command, env=self.environment, stdout=out, stderr=out, start_new_session=True)
            )

    def stop(self) -> None:
        subprocess.run(["scancel", "--user=root"], env=self.environment, check=False)
        for process in reversed(self.processes):
            process.terminate()
            process.wait(timeout=60)

    def __call__(self, *command: str, cwd: Path | None = None) -> str:
        done = subprocess.run(command, env=self.environment, cwd=cwd, capture_output=True, text=True, check=False)
        return done.stdout

    def submit(self, cwd: Path, *arguments: str) -> str:
        sizes = ["--ntasks-per-node=2", "--gpus-per-node=0", "--cpus-per-task=1"]
        script = str(ROOT / "configs/slurm/fit.sbatch")
        return self("sbatch", "--parsable", *sizes, script, *arguments, cwd=cwd).strip()

    def state(self, job: str) -> str:
        found = re.search(r"JobState=(\w+)", self("scontrol", "show", "job", job))
        return found[1] if found else ""

    def finish(self, job: str) -> None:
        wait_for(f"job {job} has ended", lambda: self.state(job) in ("COMPLETED", "FAILED", "CANCELLED"), 600)


def main() -> None:
    for program in ("slurmctld", "slurmd", "munged"):
        if shutil.which(program) is None and not Path("/usr/sbin", program).exists():
            subprocess.run(["apt-get", "update", "-qq"], check=True)
            subprocess.run(["apt-get", "install", "-y", "-qq", "slurm-wlm", "munge"], check=True)
    os.environ["PATH"] = os.pathsep.join([os.environ["PATH"], "/usr/sbin"])
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as temporary:
        folder, work = Path(temporary) / "slurm", Path(temporary) / "work"
        for made in (folder, work, work / "lightning_logs"):
            made.mkdir()
        folder.chmod(0o755)
        RUN["data"]["init_args"]["cache_dir"] = str(work / "cache")
        (work / "run.yaml").write_text(yaml.safe_dump(RUN))
        cluster = Cluster(folder)
        try:
            cluster.start()
            try_it(cluster, work)
        except BaseException:
            for log in [*folder.glob("*.log"), *sorted((work / "lightning_logs").glob("slurm-*.log"))]:
                print(f"--- {log.name}\n{log.read_text()[-3000:]}")
            print(cluster("scontrol", "show", "job"))
            raise
        finally:
            cluster.stop()
    print("Everything has been taken down.")


def try_it(cluster: Cluster, work: Path) -> None:
    whole = cluster.submit(work, "--config", "run.yaml", "--name", "whole")
    cluster.finish(whole)
    assert cluster.state(whole) == "COMPLETED"

    job = cluster.submit(work, "--config", "run.yaml", "--checkpoint.every_n_train_steps", "50")
    log, run = work / f"lightning_logs/slurm-{job}.log", work / "lightning_logs" / job
    wait_for("a checkpoint", (run / "checkpoints/last.ckpt").exists, 300)
    cluster("scancel", "--signal=USR1", job)
    wait_for("requeued", lambda: cluster.state(job) == "PENDING")
    text = log.read_text()
    print(next(line for line in text.splitlines() if line.startswith("Resume from step")))
    assert "Traceback" not in text, text
    wait_for("running again", lambda: cluster.state(job) == "RUNNING", 300)  # SLURM lets it wait for two minutes
    cluster.finish(job)
    assert cluster.state(job) == "COMPLETED"
    restarts = re.search(r"Restarts=(\d+)", cluster("scontrol", "show", "job", job))[1]
    assert restarts == "1"
    assert_same_run(work / "lightning_logs/whole", run)
    print("The run that was requeued is the uninterrupted one, bit for bit.")

    early = cluster.submit(work, "--config", "run.yaml", "--name", "early")
    wait_for("early: running", lambda: cluster.state(early) == "RUNNING")
    time.sleep(2)  # while it imports
    cluster("scancel", "--signal=USR1", early)
    wait_for("early: requeued", lambda: cluster.state(early) == "PENDING")
    requeued_at = time.time()
    wait_for("early: running again", lambda: cluster.state(early) == "RUNNING", 300)
    last = work / "lightning_logs/early/checkpoints/last.ckpt"  # may be there, had it begun before the signal
    wait_for("early: a new checkpoint", lambda: last.exists() and last.stat().st_mtime > requeued_at + 5, 300)
    cluster("scancel", early)
    cluster.finish(early)
    assert cluster.state(early) == "CANCELLED"
    text = (work / f"lightning_logs/slurm-{early}.log").read_text()
    assert "SIGTERM: finishing and saving the current step" in text, text
    print("scancel: saved and ended.")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    main()
