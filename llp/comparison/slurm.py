"""Carries out the runs of a comparison as one array job of SLURM, a run a task."""

import shutil
import subprocess
from itertools import count
from pathlib import Path

from llp.atomic_files import whole_file
from llp.comparison.folder import ComparisonFolder
from llp.comparison.plan import Plan
from llp.errors import require

_MOST_TASKS = 1000  # SLURM's MaxArraySize is 1,001 unless a cluster raises it


def submit(folder: ComparisonFolder, plan: Plan, specification: Path, script: Path, number: int) -> str:
    """Submit what is to be done now as one array job; returns SLURM's answer.

    Runs that wait for the choice of a learning rate come with the next call, when these are done.

    Args:
        folder: The comparison's.
        plan: Its plan.
        specification: The file that the tasks read.
        script: The batch script: its task N carries out the run in line N of the list.
        number: How many tasks may run at a time.

    Raises:
        SettingError: If there is no SLURM here, or nothing to do.
    """
    require(shutil.which("sbatch") is not None, "slurm", number, "there is no sbatch here; use --workers K, say")
    require(script.exists(), "slurm", number, f"there is no {script} here; call it from the repository's folder")
    names = [run.name for run in plan.runs() if not plan.is_done(run) and run.name not in plan.failed]
    require(len(names) > 0, "slurm", number, "nothing is left to do")
    names = names[:_MOST_TASKS]
    # A list of its own: tasks of an earlier call may still be waiting, or return to the queue.
    lines = next(path for number in count(1) if not (path := folder.path / f"runs-{number}.txt").exists())
    with whole_file(lines) as temporary:
        temporary.write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
    log = folder.path / "logs/slurm-%A_%a.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = ["sbatch", f"--array=1-{len(names)}%{number}", f"--output={log}", str(script), str(specification)]
    done = subprocess.run([*command, str(lines)], capture_output=True, text=True)
    require(done.returncode == 0, "slurm", number, done.stderr.strip() or "sbatch failed")
    return done.stdout.strip()
