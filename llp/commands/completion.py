"""`llp completion`: a script that completes the command line in a shell."""

from importlib import import_module
from typing import Any, Literal

from jsonargparse import ArgumentParser
from lightning.pytorch.cli import LightningArgumentParser

from llp.commands import COMMANDS, runs
from llp.commands.dispatch import FUNCTIONS
from llp.commands.parser import function_parser
from llp.commands.trainer_command import TrainerCommand
from llp.errors import SettingError


def completion(shell: Literal["bash", "zsh", "tcsh"]) -> None:
    """Print the script.

    Args:
        shell: The shell that it is for.
    """
    parser = ArgumentParser(prog="llp")
    subcommands = parser.add_subcommands()
    for name in COMMANDS:
        try:
            subcommands.add_subcommand(name, command_parser(name))
        except SettingError:  # the packages of an extra are not installed
            continue
    print(parser.get_completion_script(f"shtab-{shell}"))


def command_parser(name: str) -> ArgumentParser:
    """The parser of a subcommand."""
    if name == "runs":
        return runs.parser()
    if name in FUNCTIONS:
        return function_parser(getattr(import_module(FUNCTIONS[name]), name), name)
    try:
        _Unparsed(name, ["--help"])
    except _BuiltError as built:
        return built.parser
    raise AssertionError("LightningCLI parses its arguments before anything else")


class _BuiltError(Exception):
    def __init__(self, parser: LightningArgumentParser) -> None:
        self.parser = parser


class _Unparsed(TrainerCommand):
    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        raise _BuiltError(self.command_parser)
