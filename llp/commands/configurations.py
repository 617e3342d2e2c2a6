"""Configuration files as they are written, before they are parsed: what they say, and whether they can be read."""

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from llp.errors import SettingError, require


def read_configuration(value: str) -> dict[str, Any]:
    """The settings in a configuration file, or in YAML that stands in its place.

    Raises:
        SettingError: If there is no such file, or it can't be read, or it holds no mapping of settings.
    """
    text = value if _is_yaml_itself(value) else _text(Path(value))
    source = "(YAML)" if text is value else value
    try:
        settings = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a date in month 13; nested too deeply
        raise SettingError("config", source, f"it is not valid YAML; correct {_place(error)}") from error
    empty = "it is empty; name a file with settings, or leave it out"
    require(settings is not None, "config", source, empty)
    remedy = f"it holds no settings but a {type(settings).__name__}; write it as `section: {{setting: value}}`"
    require(isinstance(settings, dict), "config", source, remedy)
    remedy = "it names another configuration, as `config`, that is no file's name; correct or remove that line"
    require(isinstance(settings.get("config", ""), str | None), "config", source, remedy)
    return dict(settings)


def configurations(arguments: list[str]) -> list[str]:
    """The configurations that a command line names, in the order in which they are merged."""
    values = [*values_of("--config", arguments), *values_of("-c", arguments)]
    return [value for value in values if value and not value.startswith("-")]  # else the parser says that it has none


def values_of(flag: str, arguments: list[str]) -> Iterator[str]:
    """The values that a flag has on the command line, as `--flag value` or `--flag=value`."""
    for argument, following in pairwise([*arguments, ""]):
        name, equals, value = argument.partition("=")
        if name == flag:
            yield value if equals else following


def _is_yaml_itself(value: str) -> bool:
    return "\n" in value or value.lstrip().startswith("{")


def _text(path: Path) -> str:
    require(not path.is_dir(), "config", path, "it is a folder; name a file in it")
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise SettingError("config", path, f"there is no such file in {Path.cwd()}; correct the path") from error
    except OSError as error:
        raise SettingError("config", path, f"it can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise SettingError("config", path, f"it is not UTF-8 (see line {line}); save it in that encoding") from error


def _place(error: Exception) -> str:
    """Where and what the error is, in a line."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None:
        return " ".join(str(error).split())
    return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"
