"""Reading UTF-8 text files line by line, with errors that name the file and the place."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from llp.errors import SettingError


def describe_file(path: Path, split: str) -> dict[str, Any]:
    """What identifies a split's file without reading it.

    Raises:
        SettingError: If its folder or the file is missing, or it is empty.
    """
    if not path.parent.is_dir():
        raise SettingError(
            "data.init_args.path", path.parent, "there is no such folder; give the one that holds the text"
        )
    if not path.is_file():
        raise SettingError("data.init_args.path", path.parent, f"the {split} split is missing: there is no {path.name}")
    stat = path.stat()
    if stat.st_size == 0:
        raise SettingError("data.init_args.path", path.parent, f"the {split} split is empty: {path.name} has no bytes")
    return {"file": str(path.resolve()), "bytes": stat.st_size, "modified": stat.st_mtime_ns}


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, each with its line end.

    Raises:
        SettingError: Where the file is not UTF-8; it names the byte's offset.
    """
    offset = 0
    with path.open("rb") as stream:
        for line in stream:
            try:
                yield line.decode()
            except UnicodeDecodeError as error:
                place = offset + error.start
                raise SettingError(
                    "data.init_args.path",
                    path.parent,
                    f"{path.name} is not UTF-8 at byte {place}; convert or repair it",
                ) from error
            offset += len(line)
