"""Small tasks."""

from datamodules import AssociativeRecall, MirroredCopy

SMALL = {
    AssociativeRecall: {"vocab_size": 19, "n_pairs": 3, "window_len": 16},
    MirroredCopy: {"vocab_size": 19, "window_len": 16},
}
"""With the vocabulary of the small models."""
TASKS = list(SMALL)


def make(task, **settings):
    return task(**{**SMALL[task], "batch_size": 4, "n_validation": 6, "n_test": 10, **settings})
