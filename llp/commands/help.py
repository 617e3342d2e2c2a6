"""The help of each subcommand: its own options, and the sections of a configuration. Needs nothing heavy."""

import textwrap
from typing import NamedTuple


class Command(NamedTuple):
    """A subcommand, a module of `llp.commands`."""

    summary: str
    options: dict[str, str]
    """Its own options and what they are for; a positional argument bears no dashes."""
    sections: bool = False
    """Whether the sections of a run's configuration are settings of it, too."""


_CONFIG = {
    "--config FILE": "a configuration; several are merged from left to right, then come flags",
    "--name NAME": "the run in lightning_logs/",
}
_TRAINED = {"--ckpt_path PATH": "a checkpoint or a run's folder; or best, last or auto, with --name"}
_DEVICE = {
    "--accelerator NAME": "cpu, gpu or auto",
    "--precision NAME": "one of Lightning's: 32-true, bf16-mixed, …",
}
_SCORING = {**_TRAINED, **_CONFIG}

COMMANDS = {
    "fit": Command(
        "Train a model, validate it and keep checkpoints.",
        {
            **_CONFIG,
            "--ckpt_path PATH": "resume: a run's folder or a checkpoint; or last, best or auto, with --name "
            "(auto: the newest whole one, or a fresh start)",
            "--init_from PATH": "start a new run from the weights of this checkpoint",
            "--seed_everything N": "seeds the initial weights, the order of the text and dropout",
            "--print_config": "print the whole configuration that would run",
        },
        sections=True,
    ),
    "validate": Command(
        "Score the validation split; writes validation.json in the run's folder.", _SCORING, sections=True
    ),
    "test": Command("Score the test split; writes test.json into the run's folder.", _SCORING, sections=True),
    "predict": Command("Write the loss of every token of the test split, as Parquet.", _SCORING, sections=True),
    "generate": Command(
        "Continue a text, or each of a file of prompts. Needs nothing but the checkpoint.",
        {
            **_TRAINED,
            "--prompt TEXT": "the text to continue",
            "--prompts FILE": 'or many: .txt, one in each line, or .jsonl, objects with "prompt"',
            "--output FILE": 'where objects with "prompt" and "completions" go, as .jsonl; else standard output',
            "--n_samples N": "how many continuations of each prompt",
            "--batch_size N": "how many texts are continued side by side",
            "--max_tokens N": "how many tokens to draw for a text; it ends before if its document does",
            "--stop TEXT …": "a text ends before any of these; can be given again",
            "--temperature X": "divides the logits; 0 takes the likeliest token",
            "--top_k N": "draw among so many of the likeliest tokens only",
            "--top_p X": "draw among the likeliest tokens that together have this probability",
            "--seed N": "seeds the draws; sample s, counted from 0, has seed N + s",
            "--name NAME": "the run in lightning_logs/",
            **_DEVICE,
        },
    ),
    "context": Command(
        "Score the same tokens with growing context: how far back a model reads. Writes a table and a picture.",
        {
            **_SCORING,
            "--max_context N": "the longest context in tokens",
            "--split NAME": "validation or test",
            "--n_blocks N": "how many blocks of tokens are scored",
            "--block_len N": "tokens of a block",
            "--data CLASS": "another text, with --data.init_args.…",
            **_DEVICE,
        },
    ),
    "evaluate": Command(
        "Carry out tasks of EleutherAI's evaluation harness; writes evaluate.json in the run's folder.",
        {
            **_SCORING,
            "--tasks NAME,…": "rolling_perplexity, last_word, continuation; or the harness's own, or a YAML file",
            "--include_path FOLDER": "where YAML files of tasks are",
            "--limit N": "take the first so many examples of each task",
            "--n_shots N": "how many solved examples stand before each",
            "--batch_size N": "how many texts are computed side by side",
            "--data CLASS": "another text for the first three tasks, with --data.init_args.…",
            **_DEVICE,
        },
    ),
    "runs": Command(
        "List runs side by side, the best first: settings that differ, tokens, time, validation and test.",
        {
            "[FOLDER]": "the folder that holds them; lightning_logs unless given",
            "--csv FILE": "write them there, too, with all digits",
        },
    ),
    "compare": Command(
        "Train and score architectures on equal terms, and report which is better; see docs/comparison.md.",
        {
            "SPEC": "what is compared: a YAML file such as configs/compare/smoke.yaml",
            "--plan": "only list the runs, with their predicted cost",
            "--workers K": "carry out K runs at a time on this machine, which share its cores",
            "--slurm K": "submit the runs as one array job, K at a time",
            "--time": "only time a step of each arm, all in turns, for the budget of equal seconds",
            "--report": "only report what is there",
            "--retry": "try the runs that failed again",
            "--run NAME": "carry out this run alone",
            "--root FOLDER": "where comparisons/ is; lightning_logs unless given",
        },
    ),
    "prepare": Command(
        "Train the tokenizer and encode the text, on a login node, say; fit does the same where it has not been done.",
        {"--config FILE": "a configuration; only its data counts", "--data CLASS": "a benchmark"},
    ),
    "export": Command(
        "Write a trained model as a folder that transformers opens without llp; see docs/export.md.",
        {
            **_TRAINED,
            "--output DIR": "the new folder; export/ in the run's folder unless given",
            "--dtype NAME": "of the numbers: float32, bfloat16 or float16",
            "--name NAME": "the run in lightning_logs/",
        },
    ),
    "consolidate": Command("Make one file of a sharded checkpoint.", {"FOLDER": "the checkpoint"}),
    "completion": Command(
        'Print a completion script for a shell: eval "$(llp completion bash)"', {"SHELL": "bash, zsh or tcsh"}
    ),
}

_SECTIONS = """
Sections of the configuration; every setting of theirs is a flag too (--trainer.max_steps 100):
  --model CLASS         its settings: llp fit --model.help llp.LLP
  --data CLASS          its settings: llp fit --data.help datamodules.WikiText103
  --trainer             Lightning's Trainer: max_steps, devices, strategy, precision, accumulate_grad_batches, …
  --checkpoint          which checkpoints are kept: every_n_train_steps, save_top_k, monitor, mode
  --guard, --stall      what ends a run that would only burn time: max_skipped_steps, timeout_s
  --sample              the text that is sampled at each validation: sample_tokens, temperature, …
  --certificate         whether a test probes the model for causality: enabled
"""

GENERAL = f"""\
usage: llp [-h] [--version] {{{",".join(COMMANDS)}}} ...

Long-context Perceiver language models in PyTorch Lightning.

{chr(10).join(f"  {name:<13}{command.summary}" for name, command in COMMANDS.items())}

  llp fit --config configs/quickstart.yaml --name first
  llp test --ckpt_path lightning_logs/first
  llp generate --ckpt_path lightning_logs/first --prompt "The history of"
  llp fit --name first --ckpt_path last --trainer.max_steps 500
  tensorboard --logdir lightning_logs

llp COMMAND --help shows the options of a command, --help.all all settings.
"""


def help_of(name: str) -> str:
    """What `llp NAME --help` prints."""
    command = COMMANDS[name]
    usage = " ".join(option if option.isupper() else f"[{option}]" for option in command.options)
    if command.sections:
        usage += " [--SECTION.SETTING VALUE …]"
    lines = [*_wrapped(f"usage: llp {name} ", usage), "", command.summary, ""]
    for option, text in command.options.items():
        lines += _wrapped(f"  {option:<22}", text)
    if command.sections:
        lines += [_SECTIONS.rstrip(), "", f"All settings: llp {name} --help.all"]
    return "\n".join(lines) + "\n"


def _wrapped(first: str, text: str) -> list[str]:
    """Lines of 100 characters, those after the first indented to where the text begins."""
    return textwrap.wrap(text, 100, initial_indent=first, subsequent_indent=" " * len(first), break_on_hyphens=False)
