"""The console command `llp`. What needs no model is answered before torch is imported."""

import sys

import llp
from llp.interruption import LISTENER, Stopped

HELP = """\
usage: llp [-h] [--version] {fit,validate,test,predict,generate,context,prepare,consolidate} ...

Long-context Perceiver language models in PyTorch Lightning.

  llp fit --config configs/quickstart.yaml     train, validate and keep checkpoints
  llp prepare --config configs/llp_wikitext103.yaml     tokenizer and tokens alone, on a login node say
  llp validate --ckpt_path RUN/checkpoints/best.ckpt    score the validation split
  llp test --ckpt_path RUN/checkpoints/best.ckpt        score the test split, write test.json into the run's folder
  llp predict --ckpt_path RUN/checkpoints/best.ckpt     write the loss of every token of the test split
  llp generate --ckpt_path RUN/checkpoints/best.ckpt --prompt "…"    continue a text
  llp fit --name RUN --ckpt_path auto                   go on from the run's newest checkpoint, or start
  llp consolidate RUN/checkpoints/last.ckpt             make one file of a sharded checkpoint
  llp context --ckpt_path RUN/checkpoints/best.ckpt     the loss of the same tokens with growing context, drawn

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
    LISTENER.listen()
    try:
        from llp.cli import run  # imports torch and lightning: seconds

        return run(arguments)
    except Stopped as stopped:
        return 128 + stopped.signum
    finally:
        LISTENER.close()


if __name__ == "__main__":
    sys.exit(main())
