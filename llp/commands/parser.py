"""The parsers of all subcommands but `llp runs`."""

import inspect
import re
import sys
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, NoReturn, get_type_hints

import docstring_parser
from jsonargparse import ActionConfigFile, set_parsing_settings
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser

import datamodules
import llp
from llp.commands import COMMANDS
from llp.commands.trained_model import TrainedModel
from llp.decoder.patterns import AttentionPattern

set_parsing_settings(subclasses_enabled=[AttentionPattern])  # jsonargparse takes other dataclasses as they are

_NOISE = ("Does not validate against any", "Subtypes:", "Errors:", "Expected a <class 'NoneType'>", "Given value")
"""How jsonargparse begins the lines of a message in which it lists the types that it has tried."""


_UNKNOWN = re.compile(r"[Oo]ption '([\w.]+)|unrecognized arguments: --([\w.]+)")
"""How jsonargparse names a setting that there is not."""
_EXAMPLE = "--config configs/model/llp.yaml --config configs/data/text_files.yaml --config configs/trainer/cpu.yaml"


class Parser(LightningArgumentParser):
    """Says what is wrong in one message, without the list of all options before it. Abbreviated flags are refused."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        lines = [line for line in message.splitlines() if line and not line.lstrip(" -").startswith(_NOISE)]
        if "No module named" in message:
            lines.append("If the module is your own, add its folder to PYTHONPATH.")
        if "arguments are required" in message:
            lines.append(f"Name files that hold them: --config configs/quickstart.yaml, or {_EXAMPLE}")
        if found := _UNKNOWN.search(message):
            name = (found[1] or found[2]).rpartition(".")[2]
            options = (option for action in self._actions for option in action.option_strings)
            known = known_settings() | {option.lstrip("-").rpartition(".")[2] for option in options}
            lines += [f"Did you mean {match}?" for match in get_close_matches(name, known, n=1)]
        lines.append("All settings: llp COMMAND --help; of a class: llp fit --model.help CLASS, --data.help CLASS")
        print("llp: error: " + "\n".join(lines), file=sys.stderr)
        sys.exit(2)


def known_settings() -> set[str]:
    """The names of the settings of all architectures, data modules and the Trainer."""
    classes = [Trainer, *(getattr(package, name) for package in (llp, datamodules) for name in package.__all__)]
    bases = {base for cls in classes if isinstance(cls, type) for base in cls.__mro__ if "__init__" in vars(base)}
    return {name for base in bases for name in inspect.signature(base.__init__).parameters}  # type: ignore[misc]


def function_parser(function: Callable[..., None], name: str) -> Parser:
    """The command line of a function: its arguments are the options, and its docstring is their help.

    An argument `trained` is the model that `--ckpt_path` and other options of `TrainedModel` describe. A list of texts
    is given as several words, and a flag without a value. What is required without a model is positional.
    """
    parser = Parser(prog=f"llp {name}", description=COMMANDS[name])
    hints = get_type_hints(function)
    help_of = {one.arg_name: one.description for one in docstring_parser.parse(function.__doc__ or "").params}
    skip: set[str | int] = {one for one, hint in hints.items() if hint in (bool, list[str])}
    if "data" in hints:
        parser.add_argument("-c", "--config", action=ActionConfigFile, help="A configuration; only its data counts.")
        parser.add_lightning_class_args(hints["data"], "data", subclass_mode=True)
        skip.add("data")
    if "trained" in hints:
        parser.add_class_arguments(TrainedModel, as_group=False)
        skip.add("trained")
    parser.add_function_arguments(
        function, as_group=False, as_positional=not hints.keys() & {"ckpt_path", "trained"}, skip=skip
    )
    for one in inspect.signature(function).parameters:
        if hints.get(one) is bool:
            parser.add_argument(f"--{one}", action="store_true", help=help_of[one])
        elif hints.get(one) == list[str]:
            parser.add_argument(f"--{one}", type=str, nargs="+", action="extend", default=[], help=help_of[one])
    return parser
