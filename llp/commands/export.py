"""`llp export`: write a trained model as a folder that transformers opens."""

from pathlib import Path

from llp.atomic_files import run_folder
from llp.commands.named_checkpoint import named_checkpoint
from llp.commands.parser import Parser
from llp.errors import require
from llp.export.model_folder import DTYPES, write_folder
from llp.loading import chosen_checkpoint


def run(options: list[str]) -> None:
    """Write the folder, and say what is in it."""
    parser = Parser(prog="llp export", description="Write a trained model as a folder that transformers opens.")
    parser.add_argument("--name", type=str | None, help="The run in lightning_logs/.")
    parser.add_argument("--ckpt_path", type=str | None, help="A checkpoint, or a run's folder; or best, with --name.")
    parser.add_argument("--output", type=str | None, help="The new folder; export/ in the run's folder unless given.")
    parser.add_argument("--dtype", type=str, default="float32", help=f"Of the numbers: {', '.join(DTYPES)}.")
    arguments = parser.parse_args(named_checkpoint("export", options))
    remedy = "`llp export` needs a trained model; name its checkpoint"
    require(arguments.ckpt_path is not None, "ckpt_path", None, remedy)
    path = chosen_checkpoint(Path(arguments.ckpt_path))
    output = run_folder(path) / "export" if arguments.output is None else Path(arguments.output).expanduser()
    print(write_folder(path, output, arguments.dtype))
