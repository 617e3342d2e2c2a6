"""The console command `llp`. What needs no model is answered before torch is imported."""

import sys

import llp
from llp.training.interruption import LISTENER, Stopped

COMMANDS = {
    "fit": "train, validate and keep checkpoints",
    "validate": "score the validation split",
    "test": "score the test split, write test.json into the run's folder",
    "predict": "write the loss of every token of the test split",
    "generate": "continue a text",
    "context": "the loss of the same tokens with growing context, drawn",
    "prepare": "tokenizer and tokens alone, on a login node say",
    "consolidate": "make one file of a sharded checkpoint",
}
"""The subcommands, each a module of `llp.commands`."""

HELP = f"""\
usage: llp [-h] [--version] {{{",".join(COMMANDS)}}} ...

Long-context Perceiver language models in PyTorch Lightning.

{chr(10).join(f"  {name:<13}{what}" for name, what in COMMANDS.items())}

  llp fit --config configs/quickstart.yaml
  llp test --ckpt_path RUN/checkpoints/best.ckpt
  llp generate --ckpt_path RUN/checkpoints/best.ckpt --prompt "…"
  llp fit --name RUN --ckpt_path auto            resume from the run's newest checkpoint, or start
  llp consolidate RUN/checkpoints/last.ckpt

Files given with --config are merged from left to right, then come flags:
  llp fit --config configs/model/llp.yaml --config configs/data/wikitext103.yaml --trainer.max_steps 100

  llp fit --help                  all settings
  llp fit --model.help llp.LLP    those of a model
  llp fit --data.help datamodules.WikiText103    those of a benchmark
  llp fit --config FILE --print_config           the whole configuration that would run
  tensorboard --logdir lightning_logs            watch the runs
"""


def main() -> int:
    """Run the command line; returns the exit status."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(HELP, end="")
        return 0
    if arguments[0] == "--version":
        print(f"llp {llp.__version__}")
        return 0
    if arguments[0] not in COMMANDS:
        print(f"llp: error: there is no subcommand {arguments[0]!r}; choose {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    LISTENER.listen()
    try:
        from llp.commands.dispatch import run  # imports torch and lightning: seconds

        return run(arguments[0], arguments[1:])
    except Stopped as stopped:
        return 128 + stopped.signum
    finally:
        LISTENER.close()


if __name__ == "__main__":
    sys.exit(main())
