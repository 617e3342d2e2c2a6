"""The files of a comparison. They are its whole state."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import IO, Any

import yaml

from llp.atomic_files import checked_json, json_with_digest, write_whole
from llp.comparison.records import Failure, Record, Timing
from llp.comparison.spec import Settings, require_same_runs
from llp.errors import SettingError, require


class ComparisonFolder:
    """`<root>/comparisons/<name>/` and its contents.

    - `spec.yaml`: the specification, with everything it is based on; older ones are kept under numbered names;
    - `configs/<run>.yaml`: the configuration of a run;
    - `lightning_logs/<run>/`: the run's own folder, with `failed.json` if it failed;
    - `logs/<run>.log`: the output of the run; the process that writes it holds its lock;
    - `records/<run>.json`: what is kept of a finished run;
    - `timing.json`: the result of the timing pass;
    - `report.md`, `report.csv`, `contrasts.csv`, `runs.csv` and plots.

    Args:
        root: The folder of all runs, `lightning_logs`.
        name: The comparison's name.
        kind: `sweeps` for a sweep, which has no records, timing and report.
    """

    def __init__(self, root: Path, name: str, kind: str = "comparisons") -> None:
        self.root, self.path = root, root / kind / name

    def run(self, name: str) -> Path:
        """The folder of a run."""
        return self.path / "lightning_logs" / name

    def config(self, name: str) -> Path:
        return self.path / "configs" / f"{name}.yaml"

    def log(self, name: str) -> Path:
        return self.path / "logs" / f"{name}.log"

    def keep_specification(self, asked: Settings) -> None:
        """Write the specification that the runs follow.

        Raises:
            SettingError: If runs that are there already were made with other settings.
        """
        path = self.path / "spec.yaml"
        kept = yaml.safe_load(path.read_text(encoding="utf-8")) if path.exists() else None
        if kept is not None:
            require_same_runs(kept, asked)
        if kept != asked:
            _write_yaml(path, asked, keeps_older=True)

    def write_config(self, name: str, settings: Settings) -> None:
        """Write the configuration of a run."""
        _write_yaml(self.config(name), settings)

    @contextmanager
    def locked_log(self, name: str) -> Iterator[IO[bytes] | None]:
        """The log of a run, to append to; None if a living process writes to it.

        The kernel's lock belongs to the open file. As long as a process lives that was started with it as its output,
        nobody else starts the run, even if this process ends or is killed.
        """
        self.log(name).parent.mkdir(parents=True, exist_ok=True)
        with self.log(name).open("ab") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
                return
            except OSError:
                pass  # some network file systems don't support such locks
            yield stream

    def state(self, name: str) -> str | None:
        """The state that a run has recorded: `running`, `finished`, `diverged`, ...; None before it begins."""
        try:
            return checked_json((self.run(name) / "run.json").read_text(encoding="utf-8")).get("state")
        except (FileNotFoundError, ValueError):
            return None

    def fail(self, name: str, status: int, failure: Failure) -> None:
        """Note that a run failed, so that it isn't started again."""
        _write_json(self.run(name) / "failed.json", {"exit_status": status, **failure._asdict()})

    def failed(self) -> dict[str, Failure]:
        """The failed runs by name."""
        paths = sorted(self.path.glob("lightning_logs/*/failed.json"))
        contents = {path.parent.name: read_json(path) for path in paths}
        return {name: Failure(content["last_words"], content["is_diverged"]) for name, content in contents.items()}

    def forget_failures(self) -> None:
        """Let the failed runs be tried again."""
        for path in self.path.glob("lightning_logs/*/failed.json"):
            path.unlink()

    def write_record(self, record: Record) -> None:
        """Write the record of a finished run."""
        _write_json(self.path / "records" / f"{record.run}.json", asdict(record))

    def records(self) -> dict[str, Record]:
        """All records by the names of their runs.

        Raises:
            SettingError: If one can't be read.
        """
        contents = {path: read_json(path) for path in sorted(self.path.glob("records/*.json"))}
        names = {one.name for one in fields(Record)}
        for path, content in contents.items():
            is_record = content.keys() == names and content["run"] == path.stem
            require(is_record, "records", path, "it isn't a record of this version; remove it to repeat its run")
        return {path.stem: Record(**content) for path, content in contents.items()}

    def write_timing(self, timing: Timing) -> None:
        _write_json(self.path / "timing.json", asdict(timing))

    def timing(self) -> Timing | None:
        """The result of the timing pass; None if there was none."""
        path = self.path / "timing.json"
        if not path.exists():
            return None
        content = read_json(path)  # those of older versions hold more
        return Timing(content["seconds_per_step"], content["how"])


def read_json(path: Path) -> dict[str, Any]:
    """The contents of a file that this comparison or one of its runs has written.

    Raises:
        SettingError: If it is missing or damaged.
    """
    try:
        return checked_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        remedy = "remove it, or for run.json its folder, to have it made again"
        raise SettingError("file", path, f"it is missing or damaged ({error}); {remedy}") from error


def _write_json(path: Path, content: dict[str, Any]) -> None:
    write_whole(path, json_with_digest(content, sort_keys=True))


def _write_yaml(path: Path, content: Settings, keeps_older: bool = False) -> None:
    write_whole(path, yaml.safe_dump(content, sort_keys=False, width=100), keeps_older)
