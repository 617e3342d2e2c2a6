"""`llp sweep`: a grid or a random search over settings of `llp fit`."""

from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path

import yaml

from llp.commands.compare import SCRIPT, read_specification
from llp.commands.configurations import find_configuration
from llp.commands.fit import FitCommand
from llp.comparison.folder import ComparisonFolder
from llp.comparison.spec import Settings
from llp.comparison.sweep import Sweep, SweepWork
from llp.comparison.workers import Workers, submit
from llp.errors import require
from llp.evaluation.run_list import find_runs, format_runs


def sweep(
    spec: Path,
    root: Path = Path("lightning_logs"),
    plan: bool = False,
    workers: int = 1,
    slurm: int | None = None,
    run: str | None = None,
    retry: bool = False,
) -> None:
    """Train with each combination of some settings, or with random values, and list the runs; see docs/sweeps.md.

    Args:
        spec: A YAML file with the settings and their values.
        root: The folder that contains sweeps/.
        plan: Only list the runs.
        workers: The number of simultaneous runs on this machine; they share its cores.
        slurm: Submit the runs as one array job, this many at a time.
        run: Execute only the run with this name.
        retry: Try failed runs again.
    """
    for setting, value in (("workers", workers), ("slurm", slurm)):
        require(value is None or value >= 1, setting, value, "set it to 1 or more")
    source = find_configuration(spec)
    asked = Sweep(**read_specification(source, Sweep))
    folder = ComparisonFolder(root, asked.name, "sweeps")
    if plan:
        states = SweepWork(asked, folder).states
        print(*(f"{state:10}{name}" for name, state in states.items()), f"{len(states)} runs", sep="\n")
        return
    if retry:
        folder.forget_failures()
    if run is None:
        check(asked.configuration(next(iter(asked.runs))))
    folder.keep_specification(asked.as_settings())
    if slurm is not None:
        print(submit("sweep", SweepWork(asked, folder), source, find_configuration(SCRIPT), slurm))
        return
    Workers(lambda: SweepWork(asked, folder), workers, run).execute()
    work = SweepWork(asked, folder)
    if run is None and set(work.states.values()) - {"to do", "failed"}:
        print(format_runs(find_runs(folder.path)))
    work.require_success(run)


def check(settings: Settings) -> None:
    """Let `llp fit` read the configuration of a run, so that misspelt settings are found before anything starts."""
    with redirect_stdout(StringIO()):
        try:
            FitCommand(["--config", yaml.safe_dump(settings), "--print_config"])
        except SystemExit as ended:  # it has said what is wrong
            if ended.code:
                raise
