"""The console command `llp`. What needs no model is answered before torch is imported."""

import os
import signal
import sys
from io import TextIOWrapper

import llp
from llp.commands import COMMANDS
from llp.errors import SettingError
from llp.signals import LISTENER, Stopped

HELP = f"""\
usage: llp [-h] [--version] {{{",".join(COMMANDS)}}} ...

Long-context Perceiver language models in PyTorch Lightning.

{chr(10).join(f"  {name:<13}{summary}" for name, summary in COMMANDS.items())}

  llp fit --config configs/quickstart.yaml --name first
  llp test --ckpt_path lightning_logs/first
  llp generate --ckpt_path lightning_logs/first --prompt "The history of"
  llp fit --name first --ckpt_path last --trainer.max_steps 500
  tensorboard --logdir lightning_logs

llp COMMAND --help shows the options of a command, llp fit --model.help llp.LLP the settings of a class.
"""


def main() -> int:
    """Run the command line; returns the exit status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a character that the terminal's encoding lacks must not end a run
    command, *options = sys.argv[1:] or ["--help"]
    if command in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if command == "--version":
        print(f"llp {llp.__version__}")
        return 0
    if command not in COMMANDS:
        print(f"llp: error: there is no subcommand {command!r}; choose {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    LISTENER.listen()
    try:
        if command == "runs":
            return _list_runs(options)
        from llp.commands.dispatch import run  # imports torch and lightning: seconds

        return run(command, options)
    except Stopped as stopped:
        return 128 + stopped.signum
    except BrokenPipeError:  # `llp generate … | head -1`: the reader has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where Python's last flush goes
        return 128 + signal.SIGPIPE
    finally:
        LISTENER.close()


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
