"""`llp` in this process."""

import sys

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
