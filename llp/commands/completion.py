"""`llp completion`: a script that completes the command line in a shell."""

import sys
from typing import Any

from jsonargparse import ArgumentParser

from llp.commands.fit import FitCommand
from llp.commands.help import COMMANDS
from llp.commands.predict import PredictCommand
from llp.commands.test import TestCommand
from llp.commands.trainer_command import TrainerCommand
from llp.commands.validate import ValidateCommand
from llp.errors import require

SHELLS = ("bash", "zsh", "tcsh")


def run(options: list[str]) -> None:
    """Print the script for the shell that the only argument names."""
    require(len(options) == 1 and options[0] in SHELLS, "SHELL", " ".join(options), f"name one of {', '.join(SHELLS)}")
    AllCommands(options[0])


class AllCommands(TrainerCommand):
    """A command line with all subcommands, which prints its completion script instead of running one."""

    name = "fit"

    def __init__(self, shell: str) -> None:
        self.shell = shell
        super().__init__(["--help"])

    @classmethod
    def subcommands(cls) -> dict[str, set[str]]:
        commands: tuple[type[TrainerCommand], ...] = (FitCommand, ValidateCommand, TestCommand, PredictCommand)
        return {name: skipped for command in commands for name, skipped in command.subcommands().items()}

    def parse_arguments(self, parser: Any, args: Any) -> None:
        for name in COMMANDS.keys() - self.subcommands().keys():
            parser._subcommands_action.add_subcommand(name, _parser_of_own_options(name))
        print(parser.get_completion_script(f"shtab-{self.shell}"))
        sys.exit(0)


def _parser_of_own_options(name: str) -> ArgumentParser:
    parser = ArgumentParser(prog=f"llp {name}")
    for option in COMMANDS[name].options:
        if option.startswith("--"):
            flag, _, value = option.partition(" ")
            parser.add_argument(flag, type=str, metavar=value)
    return parser
