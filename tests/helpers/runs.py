"""What a run leaves behind, to compare it with another's."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from llp.language_model import LanguageModel

# Of `tiny.yaml`: three epochs of four steps.
EPOCHS = ("--trainer.max_steps", -1, "--trainer.max_epochs", 3, "--data.init_args.window_len", 900)

TIMED = {"train/tokens_per_second", "train/mfu", "train/data_wait"}


def at_call(monkeypatch: pytest.MonkeyPatch, method: str, number: int, act: Callable[[], object]) -> None:
    """Do something in one call of a method of the model, counted from 0; afterwards the method is itself again."""
    original, calls = getattr(LanguageModel, method), []

    def patched(self, *arguments):
        calls.append(None)
        if len(calls) == number + 1:
            act()
        return original(self, *arguments)

    monkeypatch.setattr(LanguageModel, method, patched)


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """All scalars of a run but those that measure time: (step, value) each."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    tags = set(events.Tags()["scalars"]) - TIMED
    return {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}


def assert_same_run(one: Path, other: Path) -> None:
    """Curves, and all of the last checkpoint."""
    np.testing.assert_equal(curves(one), curves(other))  # where not finite, too
    assert_same_checkpoint(one, other)


def assert_same_checkpoint(one: Path, other: Path) -> None:
    """All of the last checkpoint: weights, optimizer, schedule, counters, places in the data."""
    first, second = (
        torch.load(folder / "checkpoints/last.ckpt", weights_only=True)  # nothing but tensors and plain values
        for folder in (one, other)
    )
    for checkpoint in (first, second):
        checkpoint["config"] = {**yaml.safe_load(checkpoint["config"]), "name": None}
        del checkpoint["callbacks"]["RunMetrics"]["seconds"]
        for state in checkpoint["callbacks"].values():  # paths name the run
            for key in [key for key in state if "path" in key or key in ("dirpath", "best_k_models")]:
                del state[key]
    assert_equal(first, second)


def assert_equal(one, other, place="checkpoint"):
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), place
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one:
            assert_equal(one[key], other[key], f"{place}.{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), place
        for number, pair in enumerate(zip(one, other, strict=True)):
            assert_equal(*pair, f"{place}.{number}")
    else:
        assert one == other, place
