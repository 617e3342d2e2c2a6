"""Runs a subcommand; what a user can repair ends as one message."""

import sys
from importlib import import_module

from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import distributed

import datamodules
import llp
from llp.commands.configurations import configurations, read_configuration
from llp.commands.messages import in_words, is_lost_contact, is_rank_zero, silence, unreachable, users_error
from llp.signals import Stopped


def run(subcommand: str, options: list[str]) -> int:
    """Run a subcommand; returns the exit status. A `SettingError` becomes one message on standard error."""
    silence()
    for package in (llp, datamodules):  # so that `--model LLP` needs no module's name
        for name in package.__all__:
            getattr(package, name)
    try:
        for value in configurations(options):
            read_configuration(value)  # jsonargparse's words for one that it can't read don't name the file
        import_module(f"llp.commands.{subcommand}").run(options)
        _leave_process_group()
    except Stopped as stopped:
        _leave_process_group()
        if is_rank_zero():
            print(f"llp {subcommand}: stopped by {stopped}", file=sys.stderr)
        return 128 + stopped.signum
    except Exception as error:
        users, rank = users_error(error), rank_zero_only.rank  # type: ignore[attr-defined]
        if isinstance(users, BrokenPipeError):
            raise users from None
        if users is not None:
            print(f"llp {subcommand}: error: {in_words(users)}", file=sys.stderr)
        elif address := unreachable(error):
            remedy = "if that is not its node's address in the network, set GLOO_SOCKET_IFNAME to the device, eth0 say"
            print(f"llp {subcommand}: error: rank {rank} finds no other one at {address}; {remedy}", file=sys.stderr)
        elif is_lost_contact(error):
            cause = str(error).partition("\n")[0]
            print(f"llp {subcommand}: rank {rank} has lost the others: {cause}", file=sys.stderr)
        else:
            raise
        return 1
    return 0


def _leave_process_group() -> None:
    """End the threads of gloo: Lightning leaves them running, and Python then aborts now and then at its own end."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()
