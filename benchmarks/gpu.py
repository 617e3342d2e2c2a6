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
    process = subprocess.Popen(command)
    try:
        while process.poll() is None:
            time.sleep(0.2)
            at = unfinished(log)
            if at is not None and time.time() > at["time"] + at["expected_s"] + HANGS_S:
                return f"no result after {time.time() - at['time']:.0f} s"
    finally:
        process.kill()
        process.wait()
    if process.returncode == 0:
        return None
    if unfinished(log) is None:
        raise SystemExit(process.returncode)  # before it measured anything: its own message says why
    return f"its process ended with {process.returncode}"


def entries(log: Path) -> list[dict[str, Any]]:
    """What the log holds; a line that was cut off is left out."""
    found = []
    for line in log.read_text(encoding="utf-8").splitlines() if log.exists() else []:
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def unfinished(log: Path) -> dict[str, Any] | None:
    """The contestant that the process is, or was, at."""
    found = entries(log)
    return found[-1] if found and found[-1].get("event") == "started" else None


def blame(log: Path, trouble: str) -> None:
    """Write down as failed what the process was at, so that the next one leaves it out."""
    at = unfinished(log)
    assert at is not None
    row = {key: value for key, value in at.items() if key not in ("event", "time", "expected_s")}
    with log.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({**row, "status": "failed", "why": trouble}) + "\n")


if __name__ == "__main__":
    sys.exit(main())
