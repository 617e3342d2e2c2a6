"""The argument parser of all subcommands."""

import inspect
import os
import re
import sys
from types import NoneType
from typing import Any, NoReturn, Union, get_args, get_type_hints

from jsonargparse import ActionConfigFile, Namespace
from lightning.pytorch.cli import LightningArgumentParser

from llp.checkpoints.reading import import_class
from llp.errors import require

OTHER_SECTIONS = ("model", "data", "trainer", "checkpoint", "sample", "certificate", "guard", "stall")
"""The sections of a run's configuration."""


class Parser(LightningArgumentParser):
    """Says what is wrong in one message, without the list of all options before it."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        if missing := re.search(r"Problem with given class_path '(.+)':\s+No module named '(.+)'", message):
            remedy = f"add the folder in which it lies to PYTHONPATH: PYTHONPATH=FOLDER {self.prog} …"
            reason = f"Python finds no module {missing[2]!r} from {os.getcwd()}; {remedy}"
            print(f"llp: error: class_path = {missing[1]}: {reason}", file=sys.stderr)
            sys.exit(2)
        noise = r"Does not validate against any|Subtypes:|Errors:|- Expected a <class 'NoneType'>|Given value"
        lines = [line for line in message.splitlines() if not re.match(rf"\s*({noise})", line)]
        print(f"llp: error: {chr(10).join(lines)}\nAll settings: llp fit --help.all", file=sys.stderr)
        sys.exit(2)

    def instantiate(self, namespace: Namespace, *args: Any, **kwargs: Any) -> Namespace:
        for section in ("model", "data"):
            require_no_nulls(section, namespace.get(section))
        return super().instantiate(namespace, *args, **kwargs)


def require_no_nulls(setting: str, value: Any) -> None:
    """Raise a `SettingError` for a null that a class of a configuration doesn't take; jsonargparse lets all pass.

    Args:
        setting: The name of the setting.
        value: Its value; a class is a namespace with `class_path`, and `init_args` if there are any.
    """
    if not isinstance(value, Namespace) or "class_path" not in value:
        return
    cls = import_class(value.class_path)
    for name, argument in vars(value.get("init_args", Namespace())).items():
        remedy = "it is no value of this setting; give it one, or leave it out"
        require(argument is not None or _takes_null(cls, name), f"{setting}.init_args.{name}", "null", remedy)
        require_no_nulls(f"{setting}.init_args.{name}", argument)


def _takes_null(cls: type, name: str) -> bool:
    """Whether a constructor takes None for an argument, or must be given a value, which the parser sees to."""
    for one in cls.__mro__:
        parameter = inspect.signature(one.__init__).parameters.get(name)  # type: ignore[misc]
        if parameter is not None:
            hint = get_type_hints(one.__init__).get(name, Any)  # type: ignore[misc]
            return hint is Any or NoneType in get_args(hint) or parameter.default is parameter.empty
    return True


def parser_for_part(subcommand: str, description: str, needs: set[str], **kwargs: Any) -> Parser:
    """A parser for a subcommand that needs a part of a run's configuration alone, and takes all of it.

    Args:
        subcommand: Its name.
        description: What it does.
        needs: The sections that the subcommand adds itself; the others are accepted and ignored.
        kwargs: The arguments of the parser.
    """
    parser = Parser(prog=f"llp {subcommand}", description=description, **kwargs)
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="Path to a configuration file.")
    for section in OTHER_SECTIONS:
        if section not in needs:
            parser.add_argument(f"--{section}", type=dict, default={}, help="Ignored.")
    parser.add_argument("--seed_everything", type=int | bool, default=0, help="Ignored.")
    for name in ("name", "init_from"):
        parser.add_argument(f"--{name}", type=str | None, default=None, help="Ignored.")
    return parser


def keep_integers(parser: LightningArgumentParser) -> None:
    """Read `1` as an integer where a setting takes an integer or a float, in whichever order its type names them.

    `limit_val_batches` 1 is one batch, and 1.0 is all of them. The order is not that of the Trainer's source: `typing`
    keeps `Optional[Union[...]]` as whichever library was imported first has written it.
    """
    for action in parser._actions:
        types = get_args(getattr(action, "_typehint", None))
        if int in types and float in types:
            integers_first = tuple(sorted(types, key=lambda one: one is not int))
            action._typehint = Union[integers_first]  # type: ignore[attr-defined]  # noqa: UP007
