"""The subcommands of `llp`. This file imports nothing, so that `llp --help` answers at once."""

COMMANDS = {
    "fit": "Train a model, validate it and keep checkpoints.",
    "validate": "Score the validation split; writes validation.json into the run's folder.",
    "test": "Score the test split; writes test.json into the run's folder.",
    "predict": "Write the loss of every token of the test split, as Parquet.",
    "generate": "Continue a text, or each of a file of prompts. Needs nothing but the checkpoint.",
    "context": "Score the same tokens with growing context: how far back a model reads.",
    "evaluate": "Run tasks of EleutherAI's evaluation harness; writes evaluate.json into the run's folder.",
    "runs": "List runs side by side, the best first: settings that differ, tokens, time, validation and test.",
    "compare": "Train and score architectures on equal terms, and report which is better.",
    "sweep": "Train with each combination of some settings, or with random ones, and list the runs.",
    "prepare": "Train the tokenizer and encode the text, on a login node, say; fit does the same where it is needed.",
    "check": "Check an architecture of your own: causality, scoring, caches, gradients, checkpoints.",
    "export": "Write a trained model as a folder that transformers opens without llp.",
    "consolidate": "Make one file of a sharded checkpoint.",
}
"""The summary of each subcommand."""
