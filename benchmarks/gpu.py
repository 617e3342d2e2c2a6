"""Everything that is owed on a GPU, in one command and without a network; see README.md.

    python benchmarks/gpu.py --minutes 9                  # one CUDA device; writes benchmarks/results/gpu/
    python benchmarks/gpu.py --device cpu --minutes 0.5   # the same in a small form, to see that it works

The measuring is done by a process of its own. If that dies or hangs, what it was at is written down as failed, and
another process goes on with the rest.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

HANGS_S = 150
"""How long a contestant may take beyond what its unit is expected to take before its process is stopped."""
WHOLE = "(all)"
"""The name of a unit's row where it is about all of its contestants."""
GRACE_S = 15
"""How long after the time is over what was begun in time may go on."""


def main() -> int:
    """Measure until the time is over, and write the report."""
    options = parsed()
    options.out.mkdir(parents=True, exist_ok=True)
    log = options.out / "rows.jsonl"
    if options.worker:
        import gpu_units  # torch is imported by the process that measures, not by the one that watches it

        gpu_units.measure(options, log)
        return 0
    if not options.add:
        log.unlink(missing_ok=True)
    deadline = time.time() + 60 * options.minutes
    while (trouble := watch(options, log, deadline)) is not None:
        blame(log, trouble)
    import gpu_report

    wrong = gpu_report.write(entries(log), options.out)
    return 1 if wrong else 0


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=9.0, help="what would end later is not begun")
    parser.add_argument("--device", default="cuda", help="cuda; cpu: the small form")
    parser.add_argument("--parts", nargs="+", default=None, help="measure these parts alone")
    parser.add_argument("--add", action="store_true", help="go on with what an earlier run has left")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results/gpu")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--deadline", type=float, default=None, help=argparse.SUPPRESS)
    return parser.parse_args()


def watch(options: argparse.Namespace, log: Path, deadline: float) -> str | None:
    """Run a process that measures, to its end; returns what went wrong with it, or None."""
    command = [sys.executable, __file__, "--worker", "--deadline", str(deadline), "--out", str(options.out)]
    command += ["--device", options.device, *(["--parts", *options.parts] if options.parts else [])]
    n_before = len(entries(log))
    process = subprocess.Popen(command)
    try:
        while process.poll() is None:
            time.sleep(0.2)
            if (at := unfinished(entries(log)[n_before:])) is not None and (trouble := too_long(at, deadline)):
                return trouble
    finally:
        process.kill()
        process.wait()
    if process.returncode == 0:
        return None
    if len(entries(log)) == n_before:
        raise SystemExit(process.returncode)  # before it measured anything: its own message says why
    return f"its process ended with {process.returncode}"


def too_long(at: dict[str, Any], deadline: float) -> str | None:
    """Why a contestant has to be stopped; None: it has time."""
    now = time.time()
    if now > max(deadline, at["time"]) + GRACE_S:
        return "the time was over"
    return f"no result after {now - at['time']:.0f} s" if now > at["time"] + at["expected_s"] + HANGS_S else None


def entries(log: Path) -> list[dict[str, Any]]:
    """What the log holds; a line that was cut off is left out."""
    found = []
    for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def unfinished(found: list[dict[str, Any]]) -> dict[str, Any] | None:
    """What a process is, or was, at: a contestant, or between contestants their unit as a whole; None: nothing."""
    whole = at = None
    for entry in found:
        if entry.get("event") == "finished":
            whole = at = None
        elif entry.get("event") == "started":
            at = entry
            whole = entry if entry["name"] == WHOLE else whole
        elif at is not None and entry["name"] == at["name"]:
            at = whole
    return at


def blame(log: Path, trouble: str) -> None:
    """Write down as failed what the process was at, so that the next one leaves it out."""
    if (at := unfinished(entries(log))) is not None:
        row = {key: value for key, value in at.items() if key not in ("event", "time", "expected_s")}
        with log.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps({**row, "status": "failed", "why": trouble}) + "\n")


if __name__ == "__main__":
    sys.exit(main())
