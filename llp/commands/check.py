"""`llp check`: whether an architecture computes what its layers say."""

from typing import Any

from llp.checkpoints.reading import import_class
from llp.errors import SettingError
from llp.language_model import LanguageModel
from llp.testing import checked_properties


def check(architecture: str, init_args: dict[str, Any] | None = None, max_len: int = 512) -> None:
    """Check an architecture, and print each property that holds; see `llp.testing.check_architecture`.

    Args:
        architecture: The class, by its path: `my_module.MyArchitecture`.
        init_args: Its arguments, such as `--init_args.segment_len 8`; by default a model is small. Give segments,
            windows and latents a length of a few tokens.
        max_len: The longest windows that are looked at.

    Raises:
        SettingError: If a property does not hold; it names the property and the position.
    """
    path = architecture if "." in architecture else f"llp.{architecture}"
    cls = import_class(path, LanguageModel)
    try:
        cls(**{"vocab_size": 1, **(init_args or {})})
    except TypeError as error:
        raise SettingError("init_args", init_args, str(error)) from error
    try:
        for statement in checked_properties(cls, max_len, init_args or {}):
            print(f"✓ {statement}", flush=True)
    except AssertionError as error:
        raise SettingError("architecture", path, str(error)) from error
