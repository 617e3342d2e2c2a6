"""A comparison killed at random moments, with all its processes, and taken up again each time.

Its records must be those of one that was left alone, to the byte. Not part of the default tests, since ten kills take
some minutes:

    python tests/campaigns/kill_comparison.py [--kills 10] [--seed 0]
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

SPECIFICATION = Path(__file__).parents[2] / "configs/compare/smoke.yaml"
COMMAND = [sys.executable, "-m", "llp", "compare", str(SPECIFICATION), "--workers", "2"]


def start(folder: Path) -> subprocess.Popen[bytes]:
    folder.mkdir(exist_ok=True)
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(COMMAND, cwd=folder, stdout=log, stderr=log, start_new_session=True)


def files(folder: Path) -> dict[str, bytes]:
    comparison = folder / "lightning_logs/comparisons/smoke"
    paths = [*comparison.glob("records/*.json"), *comparison.glob("report.*")]
    return {path.name: path.read_bytes() for path in sorted(paths)}


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill a comparison and take it up again.")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    with tempfile.TemporaryDirectory() as temporary:
        whole, struck = Path(temporary) / "whole", Path(temporary) / "struck"
        started = time.monotonic()
        assert start(whole).wait() == 0, (whole / "log").read_text()
        longest = time.monotonic() - started
        for kill in range(arguments.kills):
            process = start(struck)
            time.sleep(rng.uniform(0, longest / 3))
            # Half of the times its workers live on, and the next one finds them at work.
            is_alone = rng.random() < 0.5
            (os.kill if is_alone else os.killpg)(process.pid, signal.SIGKILL)
            process.wait()
            print(f"kill {kill + 1} of {arguments.kills}: {len(files(struck))} files there", flush=True)
        assert start(struck).wait() == 0, (struck / "log").read_text()
        expected, found = files(whole), files(struck)
        assert expected.keys() == found.keys()
        different = [name for name in expected if expected[name] != found[name]]
        assert not different, different
        print(
            f"{arguments.kills} kills: the {len(expected)} records and reports are the undisturbed ones, to the byte."
        )


if __name__ == "__main__":
    main()
