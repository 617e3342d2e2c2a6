"""The members of Lightning and jsonargparse that are not public and that the command line needs all the same.

`tests/commands/test_private_members.py` fails when a new version has moved one of them.
"""

from typing import Union, get_args

from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.strategies import ModelParallelStrategy


def keep_integers(parser: LightningArgumentParser) -> None:
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
