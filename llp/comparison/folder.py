"""Where the files of a comparison lie. They are its whole state: nothing else remembers anything."""

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields
from pathlib import Path
from typing import IO, Any

import yaml

from llp.atomic_files import checked_json, json_with_digest, whole_file
from llp.comparison.plan import PlannedRun, Timing
from llp.comparison.specification import Settings, Specification, merged
from llp.comparison.study import Failure, Record
from llp.errors import SettingError


class ComparisonFolder:
    """`<root>/comparisons/<name>/` and what is in it.

    - `spec.yaml`: the specification, with all that it is based on; an older one is kept under a numbered name;
    - `configs/<run>.yaml`: the configuration of a run;
    - `lightning_logs/<run>/`: the run's own folder, and `failed.json` in it if it failed;
    - `logs/<run>.log`: what the run printed; who writes to it holds its lock;
    - `records/<run>.json`: what is kept of a run that is done;
    - `timing.json`: seconds of a step, measured for all arms in turns;
    - `report.md`, `report.csv` and pictures.

    Args:
        root: The folder of all runs, `lightning_logs`.
        name: The comparison's.
    """

    def __init__(self, root: Path, name: str) -> None:
        self.path = root / "comparisons" / name

    def run(self, name: str) -> Path:
        """The folder of a run."""
        return self.path / "lightning_logs" / name

    def config(self, name: str) -> Path:
        return self.path / "configs" / f"{name}.yaml"

    def log(self, name: str) -> Path:
        return self.path / "logs" / f"{name}.log"

    # Written before runs start

    def write_specification(self, specification: Specification) -> None:
        """Keep the specification that the runs follow."""
        path, settings = self.path / "spec.yaml", specification.as_settings()
        if not path.exists() or yaml.safe_load(path.read_text(encoding="utf-8")) != settings:
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_yaml(path, settings, keeps_older=True)

    def write_config(self, run: PlannedRun) -> Path:
        """Write the configuration of a run."""
        path = self.config(run.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        place: Settings = {"trainer": {"default_root_dir": str(self.path)}}
        _write_yaml(path, merged(run.settings, place), keeps_older=False)
        return path

    @contextmanager
    def locked_log(self, name: str) -> Iterator[IO[bytes] | None]:
        """The log of a run, to add to; None if a process that is still alive writes to it.

        The kernel's lock belongs to the open file: as long as a process that was started with it as its output lives,
        this one may end or be killed, nobody else takes the run up.
        """
        self.log(name).parent.mkdir(parents=True, exist_ok=True)
        with self.log(name).open("ab") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield None
                return
            except OSError:
                pass  # some network file systems have no such locks
            yield stream

    # Failures

    def fail(self, name: str, status: int, failure: Failure) -> None:
        """Remember that a run failed, so that it is left alone."""
        self.run(name).mkdir(parents=True, exist_ok=True)
        _write_json(self.run(name) / "failed.json", {"exit_status": status, **failure._asdict()})

    def failed(self) -> dict[str, Failure]:
        """The runs that failed."""
        paths = sorted(self.path.glob("lightning_logs/*/failed.json"))
        contents = {path.parent.name: read_json(path) for path in paths}
        return {name: Failure(content["last_words"], content["is_diverged"]) for name, content in contents.items()}

    def forget_failures(self) -> None:
        """Let the runs that failed be tried again."""
        for path in self.path.glob("lightning_logs/*/failed.json"):
            path.unlink()

    # Records

    def write_record(self, record: Record) -> None:
        """Write the record of a run that is done."""
        path = self.path / "records" / f"{record.run}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_json(path, asdict(record))

    def records(self) -> dict[str, Record]:
        """All records, by the names of their runs.

        Raises:
            SettingError: If one can't be read.
        """
        return {path.stem: _record(path) for path in sorted(self.path.glob("records/*.json"))}

    # Timing

    def write_timing(self, timing: Timing) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        _write_json(self.path / "timing.json", asdict(timing))

    def timing(self) -> Timing | None:
        """Seconds of a step by arm; None: nothing was timed."""
        path = self.path / "timing.json"
        return Timing(**read_json(path)) if path.exists() else None


def _record(path: Path) -> Record:
    content = read_json(path)
    expected = {one.name for one in fields(Record)}
    remedy = "it is no record of this version; remove it, and its run is repeated"
    if content.keys() != expected or content["run"] != path.stem:
        raise SettingError("records", path, remedy)
    return Record(**content)


def read_json(path: Path, remedy: str = "remove it, and it is made again") -> dict[str, Any]:
    """The content of a file that this comparison has written, or one of its runs.

    Raises:
        SettingError: If it can't be read, or is not what was written; with the remedy.
    """
    try:
        return checked_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise SettingError("file", path, f"it is missing or damaged ({error}); {remedy}") from error


def _write_json(path: Path, content: dict[str, Any]) -> None:
    with whole_file(path, keeps_older=False) as temporary:
        temporary.write_text(json_with_digest(content, sort_keys=True), encoding="utf-8")


def _write_yaml(path: Path, content: Settings, keeps_older: bool) -> None:
    with whole_file(path, keeps_older=keeps_older) as temporary:
        temporary.write_text(yaml.safe_dump(content, sort_keys=False, width=100), encoding="utf-8")
