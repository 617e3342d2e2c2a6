"""The console command `llp`. What needs no model is answered before torch is imported."""

import os
import signal
import sys
from io import TextIOWrapper

import llp
from llp.commands.help import COMMANDS, GENERAL, help_of
from llp.errors import SettingError
from llp.signals import LISTENER, Stopped


def main() -> int:
    """Run the command line; returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # a character that the terminal's encoding lacks ends no run
            stream.reconfigure(errors="replace")
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(GENERAL, end="")
        return 0
    if arguments[0] == "--version":
        print(f"llp {llp.__version__}")
        return 0
    if arguments[0] not in COMMANDS:
        print(f"llp: error: there is no subcommand {arguments[0]!r}; choose {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    if {"-h", "--help"} & set(arguments[1:]):
        print(help_of(arguments[0]), end="")
        return 0
    if not _is_working_folder_there():
        print("llp: error: the working folder is gone; cd to one that is there", file=sys.stderr)
        return 1
    LISTENER.listen()
    try:
        if arguments[0] == "runs":
            return _list_runs(arguments[1:])
        from llp.commands.dispatch import run  # imports torch and lightning: seconds

        return run(arguments[0], arguments[1:])
    except Stopped as stopped:
        return 128 + stopped.signum
    except BrokenPipeError:  # `llp generate … | head -1`: nobody reads on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where Python's last flush goes
        return 128 + signal.SIGPIPE
    finally:
        LISTENER.close()


def _is_working_folder_there() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def _list_runs(options: list[str]) -> int:
    from llp.commands.runs import run

    try:
        run(options)
    except BrokenPipeError:
        raise
    except (SettingError, OSError) as error:
        print(f"llp runs: error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
