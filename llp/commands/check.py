"""`llp check`: whether an architecture computes what its layers say."""

from typing import Any

from llp.checkpoints.reading import import_class
from llp.errors import SettingError
from llp.language_model import LanguageModel
from llp.testing import checked_properties


def check(architecture: str, init_args: dict[str, Any] | None = None, max_len: int = 512) -> None:
    """Check an architecture, and print each property that holds; see `llp.testing.check_architecture`.

    Args:
        architecture: The import path of the class, such as `my_module.MyArchitecture`.
        init_args: Arguments of the class, such as `--init_args.segment_len 8`; by default the model is small. Make
            segments, windows and latents a few tokens long.
        max_len: Length of the longest windows that are checked.

    Raises:
        SettingError: If a property does not hold; the message names the property and the position.
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
