"""`llp` in this process."""

import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace
from typing import IO

import pytest

from helpers.signal_handlers import handlers_restored
from llp import __main__ as console


def call(*arguments: object) -> int:
    """Run `llp` in this process; returns its exit status."""
    with pytest.MonkeyPatch.context() as patch, handlers_restored():
        patch.setattr(sys, "argv", ["llp", *map(str, arguments)])
        try:
            return console.main()
        except SystemExit as stop:
            return stop.code


def in_this_process(workers: object, command: list[str], log: IO[bytes]) -> SimpleNamespace:
    """Execute a stage of a comparison's or a sweep's run here; returns what stands for a process of its own."""
    with open(os.dup(log.fileno()), "a") as text, redirect_stdout(text), redirect_stderr(text):
        print("$ llp", *command)
        status = call(*command)
    return SimpleNamespace(poll=lambda: status, returncode=status)
