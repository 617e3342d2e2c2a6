"""Configuration files, before they are parsed: where they are, and what they say."""

from pathlib import Path
from typing import Any

import yaml

import llp
from llp.errors import SettingError, require


def find_configuration(path: str | Path) -> Path:
    """A file of the working folder, or the one of this name under `configs/` that comes with the package."""
    path = Path(path)
    shipped = Path(llp.__file__).parent / path
    return shipped if path.parts[:1] == ("configs",) and not path.exists() and shipped.exists() else path


def read_configuration(value: str | Path) -> dict[str, Any]:
    """The settings in a configuration file, or in YAML given in place of a file.

    Raises:
        SettingError: If there is no such file, it can't be read, or it holds no mapping of settings.
    """
    is_yaml = isinstance(value, str) and ("\n" in value or value.lstrip().startswith("{"))
    source, text = ("(YAML)", str(value)) if is_yaml else (str(value), _text(Path(value)))
    try:
        settings = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date in month 13
        raise SettingError("config", source, f"it is not valid YAML: {' '.join(str(error).split())}") from error
    remedy = "it holds no settings; write them as `section: {setting: value}`"
    require(isinstance(settings, dict), "config", source, remedy)
    return dict(settings)


def _text(path: Path) -> str:
    try:
        return find_configuration(path).read_text(encoding="utf-8")
    except FileNotFoundError as error:
        remedy = f"there is no such file in {Path.cwd()}, nor does it come with llp; correct the path"
        raise SettingError("config", path, remedy) from error
    except OSError as error:
        raise SettingError("config", path, f"it can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SettingError("config", path, "it is not UTF-8; save it in that encoding") from error
