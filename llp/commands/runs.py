"""`llp runs`: the runs of a folder side by side. Needs nothing heavy."""

import argparse
from pathlib import Path

from llp.evaluation.run_list import find_runs, format_runs, write_runs


def run(options: list[str]) -> None:
    """Print the runs of a folder, the best first; write them as CSV where that is asked for."""
    parser = argparse.ArgumentParser(prog="llp runs", add_help=False)
    parser.add_argument("folder", nargs="?", default="lightning_logs", type=Path, metavar="FOLDER")
    parser.add_argument("--csv", type=Path, metavar="FILE")
    arguments = parser.parse_args(options)
    runs = find_runs(arguments.folder)
    print(format_runs(runs))
    if arguments.csv is not None:
        print(f"Written to {write_runs(runs, arguments.csv)}")
