"""Runs a subcommand; an error that the user can fix ends as one message."""

import inspect
import sys
from importlib import import_module

from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import distributed

import datamodules
import llp
from llp.checkpoints import reading
from llp.commands.arguments import Arguments
from llp.commands.fit import FitCommand
from llp.commands.messages import in_words, is_lost_contact, silence, users_error
from llp.commands.parser import function_parser
from llp.commands.trained_model import TrainedModel, with_stored_tokenizer
from llp.commands.trainer_command import TrainerCommand
from llp.errors import require
from llp.signals import Stopped

FUNCTIONS = {
    **{
        name: f"llp.commands.{name}"
        for name in ("generate", "context", "evaluate", "compare", "sweep", "prepare", "check")
    },
    **dict.fromkeys(("export", "consolidate"), "llp.commands.conversion"),
}
"""The subcommands that are functions of the same name, and their modules."""


def run(command: str, options: list[str]) -> int:
    """Run a subcommand; returns the exit status."""
    silence()
    # So that `--model LLP` needs no module's name. PretrainedModel does: its imports are an extra, and take seconds.
    for package, names in ((llp, llp.ARCHITECTURES), (datamodules, datamodules.__all__)):
        for name in names:
            getattr(package, name)
    try:
        for word in options:
            shown = word.encode(errors="surrogateescape").decode(errors="backslashreplace")
            require(word == shown, "argument", shown, "it is not UTF-8; rename the file or folder")
        if command in FUNCTIONS:
            call_function(command, options)
        elif command == "fit":
            FitCommand(options)
        else:
            TrainerCommand(command, options)
        _leave_process_group()
    except Stopped as stopped:
        _leave_process_group()
        if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
            print(f"llp {command}: stopped by {stopped}", file=sys.stderr)
        return 128 + stopped.signum
    except Exception as error:
        users, rank = users_error(error), rank_zero_only.rank  # type: ignore[attr-defined]
        if isinstance(users, BrokenPipeError):
            raise users from None
        if users is not None:
            print(f"llp {command}: error: {in_words(users)}", file=sys.stderr)
        elif is_lost_contact(error):
            print(
                f"llp {command}: rank {rank} has lost the others: {str(error).partition(chr(10))[0]}", file=sys.stderr
            )
        else:
            raise
        return 1
    return 0


def call_function(command: str, options: list[str]) -> None:
    """Call the function that a subcommand is, with the arguments that its command line gives."""
    function = getattr(import_module(FUNCTIONS[command]), command)
    takes = inspect.signature(function).parameters.keys()
    checkpoint = None
    if takes & {"trained", "ckpt_path", "data"}:
        arguments = Arguments(command, options)
        options = arguments.words(takes & {"data"})
        checkpoint = None if arguments.ckpt_path is None else reading.read(arguments.ckpt_path)
    parser = function_parser(function, command)
    config = parser.parse_args(options)
    given = vars(parser.instantiate(with_stored_tokenizer(config, checkpoint) if "data" in takes else config))
    given.pop("config", None)
    if "trained" in takes:
        names = inspect.signature(TrainedModel).parameters
        given["trained"] = TrainedModel(**{name: given.pop(name) for name in names})
    function(**given)


def _leave_process_group() -> None:
    """End the threads of gloo: Lightning leaves them running, and Python then sometimes aborts at its own end."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
