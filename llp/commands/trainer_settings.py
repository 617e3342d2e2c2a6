"""Settings of the Trainer with which Lightning would fail late, or train nothing without a word."""

import sys
from datetime import timedelta
from typing import Any

from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    Callback,
    LearningRateFinder,
    ModelPruning,
    OnExceptionCheckpoint,
)
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from llp.errors import SettingError, require

_UNFIT = {
    BackboneFinetuning: "no model here has a backbone; leave it out, and start from trained weights with --init_from",
    LearningRateFinder: "it trains by a schedule of its own; leave it out, and compare rates with `llp compare`",
    ModelPruning: "it puts other parameters in the place of those that a checkpoint holds; leave it out",
    OnExceptionCheckpoint: "an exception can come in the middle of a step, from which no run goes on exactly; leave it "
    "out, and set checkpoint.every_n_train_steps",
}
"""Lightning's callbacks that can't work with these models, and why."""


def check_trainer_settings(settings: Any) -> None:
    """Raise a `SettingError` for a setting with which no training comes about.

    Args:
        settings: The section `trainer` of a configuration that is to be trained.
    """
    remedy = "set it to the number of optimizer steps of the whole run, 1 or more"
    require(settings.max_steps != 0, "trainer.max_steps", 0, f"nothing would be trained; {remedy}")
    for name in ("max_epochs", "limit_train_batches"):
        value = settings[name]
        require(value is None or value != 0, f"trainer.{name}", value, "nothing would be trained; leave it out")
    for name in ("val_check_interval", "check_val_every_n_epoch", "log_every_n_steps"):
        value = settings[name]
        is_time = isinstance(value, str | dict) or hasattr(value, "total_seconds")
        require(value is None or is_time or value > 0, f"trainer.{name}", value, "set it to 1 or more")
    remedy = "a run can't be handed to processes that are started so; use ddp, which starts them as `llp` itself"
    require("spawn" not in str(settings.strategy), "trainer.strategy", settings.strategy, remedy)
    for name in ("max_time", "val_check_interval"):
        _check_time(f"trainer.{name}", settings[name])
    accumulated, norm = settings.accumulate_grad_batches, settings.gradient_clip_val
    require(accumulated >= 1, "trainer.accumulate_grad_batches", accumulated, "set it to 1 or more")
    remedy = f"with accumulate_grad_batches = {accumulated} these are more batches than can be counted; lower it"
    require(settings.max_steps * accumulated <= sys.maxsize, "trainer.max_steps", settings.max_steps, remedy)
    require(norm is None or norm >= 0, "trainer.gradient_clip_val", norm, "set it above 0, or to null: no clipping")


def check_callbacks(callbacks: list[Callback]) -> None:
    """Raise a `SettingError` for a callback with which no training comes about."""
    for callback in callbacks:
        for unfit, remedy in _UNFIT.items():
            require(not isinstance(callback, unfit), "trainer.callbacks", type(callback).__name__, remedy)


def _check_time(setting: str, value: Any) -> None:
    if isinstance(value, dict):
        try:
            timedelta(**value)
        except (OverflowError, TypeError) as error:
            remedy = (
                "it is no time that can be counted; write it as {hours: 1}, say, in days, hours, minutes or seconds"
            )
            raise SettingError(setting, value, remedy) from error


def check_length(max_steps: int, resumed_step: int, schedule: str | None) -> None:
    """Raise a `SettingError` for a length of the run that the schedule, or the run which is resumed, can't have.

    Args:
        max_steps: Optimizer steps of the whole run; -1: no limit.
        resumed_step: Those done already.
        schedule: The model's, if it has one of ours.
    """
    remedy = "the cosine falls until the last step; set it to the number of optimizer steps, or schedule to halving"
    require(max_steps > 0 or schedule != "cosine", "trainer.max_steps", max_steps, remedy)
    remedy = f"the checkpoint has trained for {resumed_step:,} steps, and counts to the whole run's; set it above that"
    require(max_steps < 0 or max_steps >= resumed_step, "trainer.max_steps", max_steps, remedy)


def warn_of_warmup(warmup_steps: int, max_steps: int) -> None:
    """Say that the learning rate never reaches its peak, where the warm-up takes the whole run."""
    if 0 < max_steps <= warmup_steps:
        rank_zero_warn(
            f"model.init_args.warmup_steps = {warmup_steps}: the warm-up takes all of trainer.max_steps = {max_steps}, "
            "so that the learning rate only rises; set it to a tenth of the run, say"
        )
