"""What a run was set to, from its first step to its last: kept in its checkpoints, checked and said on a resume.

Settings bear the names that a configuration gives them. Those of the model and the data can change on a resume where
their class names them in `changeable_settings`; those of the trainer all can. What changes takes effect from the first
resumed step on, and is added to the run's history.
"""

import math
import os
from typing import Any

from llp.errors import SettingError

OF_TRAINER = (
    "max_steps",
    "max_epochs",
    "accumulate_grad_batches",
    "gradient_clip_val",
    "gradient_clip_algorithm",
    "precision",
    "world_size",
    "val_check_batch",
    "limit_val_batches",
)


def settings_of(trainer: Any, model: Any, data: Any) -> dict[str, Any]:
    """The settings that determine a training, as plain values."""
    settings: dict[str, Any] = {"seed_everything": seed()}
    settings |= {f"model.init_args.{name}": value for name, value in model.hparams.items()}
    settings |= {f"data.init_args.{name}": value for name, value in (data.hparams if data is not None else {}).items()}
    settings |= {f"trainer.{name}": getattr(trainer, name) for name in OF_TRAINER}
    if hasattr(data, "about"):  # once the text is prepared
        settings["data.data_fingerprint"] = data.about["data_fingerprint"]
    return {name: _plain(value) for name, value in settings.items()}


def batch_of(settings: dict[str, Any]) -> dict[str, int | None]:
    """How many windows an optimizer step trains on, over all ranks, and their length; None: data that is not ours."""
    names = ("data.init_args.batch_size", "trainer.world_size", "trainer.accumulate_grad_batches")
    factors: list[Any] = [settings.get(name) for name in names]
    return {
        "windows_per_step": None if None in factors else math.prod(factors),
        "training_window_len": settings.get("data.init_args.window_len"),
    }


def seed() -> int | None:
    """The seed of the run, where Lightning's `seed_everything` leaves it; None: it was not called."""
    value = os.environ.get("PL_GLOBAL_SEED")
    return None if value is None else int(value)


def _plain(value: Any) -> Any:
    """What a checkpoint can hold without code: numbers, strings, lists."""
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def current(history: list[dict[str, Any]]) -> dict[str, Any]:
    """The settings at the end of a history: what each start of the run has set, one over the other."""
    return {name: value for entry in history for name, value in entry["settings"].items()}


def changes(history: list[dict[str, Any]], settings: dict[str, Any]) -> dict[str, Any]:
    """The settings that differ from those at the end of the history, or are new."""
    before = current(history)
    return {name: value for name, value in settings.items() if name not in before or before[name] != value}


def describe(history: list[dict[str, Any]], changed: dict[str, Any], step: int) -> list[str]:
    """The changes in words, a line each: `learning_rate 0.003 -> 0.001 from step 41`."""
    before = current(history)
    return [
        f"{name.rpartition('.')[2]} {before[name]} -> {value} from step {step:,}"
        for name, value in changed.items()
        if name in before
    ]


def check_resume(history: list[dict[str, Any]], settings: dict[str, Any], changeable: frozenset[str]) -> None:
    """Raise a `SettingError` for a setting of the model, the data or the seed that can't change on a resume.

    Args:
        history: That of the run which is resumed.
        settings: What is set now.
        changeable: Names, without what precedes them, of the settings of model and data that can change.
    """
    before = current(history)
    for name, value in changes(history, settings).items():
        section, _, short = name.rpartition(".")
        if name in before and not section.startswith("trainer") and short not in changeable:
            remedy = (
                f"the run has {before[name]}, and a resumed run can't change it; leave it out, or start a new run from "
                "the weights of this one with --init_from"
            )
            raise SettingError(name, value, remedy)
