"""What the subcommands share that use a trained model and no Trainer."""

from collections.abc import Callable
from typing import Any

from jsonargparse import Namespace
from lightning.fabric import Fabric

from llp.commands.parser import Parser
from llp.errors import require
from llp.loading import load


class CheckpointCommand:
    """A trained model on the device and in the precision that the command line names, and the subcommand's own options.

    Args:
        parser: The subcommand's, with `--name`.
        function: Its arguments are the subcommand's own options.
        skip: Those of its arguments that are none.
        options: The words behind the subcommand.

    Raises:
        SettingError: If no checkpoint is named, or it can't be used.
    """

    def __init__(self, parser: Parser, function: Callable[..., Any], skip: set[str | int], options: list[str]) -> None:
        parser.add_argument(
            "--ckpt_path", type=str | None, help="A checkpoint, or a run's folder; or best, with --name."
        )
        names = parser.add_function_arguments(function, skip=skip)
        parser.add_argument("--accelerator", type=str, default="auto", help="cpu, gpu or auto.")
        parser.add_argument("--precision", type=str, default="32-true", help="One of Lightning's: bf16-mixed, say.")
        self.arguments: Namespace = parser.parse_args(options)
        self.own = {name: self.arguments[name] for name in names}
        remedy = f"`{parser.prog}` needs a trained model; name its checkpoint"
        require(self.arguments.ckpt_path is not None, "ckpt_path", None, remedy)
        self.ckpt_path: str = self.arguments.ckpt_path
        fabric = Fabric(accelerator=self.arguments.accelerator, devices=1, precision=self.arguments.precision)
        self.autocast = fabric.autocast
        self.loaded = load(self.ckpt_path).to(fabric.device)
