"""`llp runs`: the runs of a folder side by side. Alone in its file, because it imports nothing heavy."""

from pathlib import Path

from jsonargparse import ArgumentParser

from llp.atomic_files import whole_file
from llp.commands import COMMANDS
from llp.evaluation.run_list import find_runs, format_runs


def parser() -> ArgumentParser:
    """The command line of `llp runs`."""
    parser = ArgumentParser(prog="llp runs", description=COMMANDS["runs"])
    parser.add_argument("folder", nargs="?", type=Path, default=Path("lightning_logs"), help="The folder of the runs.")
    parser.add_argument("--csv", type=Path | None, help="Also write the table there, with all digits.")
    return parser


def run(options: list[str]) -> None:
    """Print the runs of a folder, the best first; write them as CSV where that is asked for."""
    arguments = parser().parse_args(options)
    runs = find_runs(arguments.folder)
    print(format_runs(runs))
    if arguments.csv is not None:
        with whole_file(arguments.csv) as temporary:
            runs.drop(columns="test_data_fingerprint").to_csv(temporary, index=False)
        print(f"Written to {arguments.csv}")
