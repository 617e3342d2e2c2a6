"""The settings of a run from its first step to its last: stored in its checkpoints, checked and reported on a resume.

Settings have the names that a configuration gives them. Those of the model and the data can change on a resume if the
class lists them in `changeable_settings`; those of the trainer all can. A change takes effect from the first resumed
step on, and is added to the history.
"""

import math
import os
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

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
Settings = dict[str, Any]
History = list[dict[str, Any]]
"""For each start of a run its first step, counted from 1, as `step`, and the `settings` that changed."""


def settings_of(trainer: Trainer, model: LightningModule, data: LightningDataModule | None) -> Settings:
    """The settings that determine a training, as plain values."""
    settings: Settings = {"seed_everything": seed()}
    settings |= {f"model.init_args.{name}": value for name, value in model.hparams.items()}
    settings |= {f"data.init_args.{name}": value for name, value in (data.hparams if data is not None else {}).items()}
    settings |= {f"trainer.{name}": getattr(trainer, name) for name in OF_TRAINER}
    about = getattr(data, "about", None)  # once the text is prepared
    if about is not None:
        settings["data.data_fingerprint"] = about["data_fingerprint"]
    return {name: _plain(value) for name, value in settings.items()}


def batch_of(settings: Mapping[str, Any]) -> dict[str, int | None]:
    """The windows of an optimizer step over all ranks, and their length; None for a data module of another project."""
    names = ("data.init_args.batch_size", "trainer.world_size", "trainer.accumulate_grad_batches")
    factors: list[Any] = [settings.get(name) for name in names]
    return {
        "windows_per_step": None if None in factors else math.prod(factors),
        "training_window_len": settings.get("data.init_args.window_len"),
    }


def seed() -> int | None:
    """The run's seed, which Lightning's `seed_everything` leaves in the environment, or None."""
    value = os.environ.get("PL_GLOBAL_SEED")
    return None if value is None else int(value)


def _plain(value: Any) -> Any:
    """What a checkpoint can hold without code: numbers, strings, lists."""
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def current(history: History) -> Settings:
    """The settings at the end of a history."""
    return {name: value for entry in history for name, value in entry["settings"].items()}


def changes(history: History, settings: Settings) -> Settings:
    """The settings that differ from those at the end of the history, or are new."""
    before = current(history)
    return {name: value for name, value in settings.items() if name not in before or before[name] != value}


def describe(history: History, changed: Settings, step: int) -> list[str]:
    """The changes in words, one per line: `learning_rate 0.003 -> 0.001 from step 41`."""
    before = current(history)
    return [
        f"{name.rpartition('.')[2]} {before[name]} -> {value} from step {step:,}"
        for name, value in changed.items()
        if name in before
    ]


def check_resume(history: History, settings: Settings, changeable: frozenset[str]) -> None:
    """Raise a `SettingError` for a setting of the model, the data or the seed that can't change on a resume.

    Args:
        history: That of the resumed run.
        settings: The settings now.
        changeable: Names of the settings of model and data that can change, without the section.
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
