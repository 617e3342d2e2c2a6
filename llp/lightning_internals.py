"""Members of Lightning and jsonargparse that are private, or that type hints leave out, each with its reason.

`tests/training/test_lightning_internals.py` fails in one line per member when a new version of Lightning moves it.
"""

from argparse import ArgumentParser
from typing import Protocol, TypeVar, Union, cast, get_args

from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy

C = TypeVar("C", bound=Callback)

MODEL_CHECKPOINT = ("_save_checkpoint", "_save_last_checkpoint", "_monitor_candidates", "_last_checkpoint_saved")
"""Members of `ModelCheckpoint` that `RunCheckpoint` overrides, calls or sets.

No public hook surrounds the writing of one checkpoint, sharded or not, which must happen under a temporary name. And
`last.ckpt` is due at moments that `ModelCheckpoint` does not know: when a signal arrives, and after the last step.
"""


class _Untyped(Protocol):
    """Public attributes of the Trainer that are set in places where no type checker sees them."""

    callbacks: list[Callback]
    datamodule: LightningDataModule | None
    fast_dev_run: bool | int
    log_every_n_steps: int
    check_val_every_n_epoch: int | None
    limit_val_batches: float
    overfit_batches: float
    _val_check_time_interval: float | None


def untyped(trainer: Trainer) -> _Untyped:
    """The trainer, with the attributes that its type hints leave out."""
    return cast(_Untyped, trainer)


def find_callback(trainer: Trainer, kind: type[C]) -> C | None:
    """The first callback of a class, or None if there is none."""
    return next((callback for callback in untyped(trainer).callbacks if isinstance(callback, kind)), None)


def is_accumulating(trainer: Trainer) -> bool:
    """Whether the optimizer step is still waiting for other batches after the current one.

    Lightning also takes the step at the end of an epoch, whose number of batches need not be known.
    """
    return trainer.fit_loop._should_accumulate()


def validates_next(trainer: Trainer) -> bool:
    """Whether a validation follows the current batch, by number of batches, by time, or because training stops.

    Asked in `on_train_batch_end`, where a checkpoint would make a resumed run skip that validation.
    """
    loop = trainer.fit_loop
    assert loop._data_fetcher is not None
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)


def validate_after_this_batch(trainer: Trainer) -> None:
    """Let a validation follow the current batch, whatever the interval; called in `on_train_batch_end`."""
    trainer.val_check_batch = 1
    untyped(trainer)._val_check_time_interval = None  # an interval of time would take precedence


def save_last(callback: ModelCheckpoint, trainer: Trainer) -> None:
    """Write `last.ckpt` now."""
    callback._save_last_checkpoint(trainer, callback._monitor_candidates(trainer))


def keep_integers(parser: ArgumentParser) -> None:
    """Read `1` as an integer where a setting takes an integer or a float: 1 batch is not 1.0, which is all of them.

    jsonargparse tries types in the order in which `typing` keeps them, which is not that of the Trainer's source but of
    whichever library wrote such a type first.
    """
    for action in parser._actions:
        types = get_args(getattr(action, "_typehint", None))
        if int in types and float in types:
            integers_first = tuple(sorted(types, key=lambda one: one is not int))
            action._typehint = Union[integers_first]  # type: ignore[attr-defined]  # noqa: UP007


def share_data_over_all(strategy: ModelParallelStrategy, world_size: int) -> None:
    """Give each process its own part of the text, unless the configuration says how many share one.

    Lightning's "auto" is the number of nodes: all processes of a node would read the same text. Only the Trainer knows
    how many processes there are, when it has built the strategy.
    """
    if strategy._data_parallel_size == "auto":
        strategy._data_parallel_size, strategy._tensor_parallel_size = world_size, 1
