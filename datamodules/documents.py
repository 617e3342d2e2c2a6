"""Text before it is encoded: documents as blocks of whole lines, from files or from the Hub.

Errors name the file and the place in it.
"""

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from llp.errors import SettingError

_BLOCK = 1 << 18  # bytes


class Text(NamedTuple):
    """A document: its name and text, and the file and byte where it begins, if it comes from a file.

    The text comes as blocks of UTF-8 that end with whole lines, each read when it is asked for.
    """

    name: str
    blocks: Iterable[bytes]
    file: Path | None = None
    start: int = 0

    def lines(self) -> Iterator[list[str]]:
        """The lines of each block, with their line ends.

        Raises:
            SettingError: If the text is not UTF-8; it names the file and the byte's offset.
        """
        offset = self.start
        for block in self.blocks:
            try:
                text = block.decode()
            except UnicodeDecodeError as error:
                folder, name = (self.file.parent, self.file.name) if self.file else (None, self.name)
                remedy = f"{name} is not UTF-8 at byte {offset + error.start}; convert or repair it"
                raise SettingError("data.init_args.path", folder, remedy) from error
            *whole, rest = text.split("\n")
            yield [line + "\n" for line in whole] + ([rest] if rest else [])
            offset += len(block)


def read_text(path: Path, name: str) -> Text:
    """A file as one document."""
    return Text(name, read_blocks(lambda: path.open("rb")), path)


def read_blocks(opened: Callable[[], BinaryIO], start: int = 0, stop: int = sys.maxsize) -> Iterator[bytes]:
    """The text between two bytes of a file, each the first of a line, as blocks of whole lines."""
    with opened() as stream:
        stream.seek(start)
        while block := stream.read(min(_BLOCK, stop - start)):
            start += len(block)
            if start < stop:
                block += (rest := stream.readline())
                start += len(rest)
            yield block


def blocks_of(lines: Iterable[str]) -> Iterator[bytes]:
    """Lines of text as blocks."""
    block: list[str] = []
    size = 0
    for line in lines:
        block.append(line)
        size += len(line)
        if size >= _BLOCK:
            yield "".join(block).encode()
            block, size = [], 0
    if block:
        yield "".join(block).encode()


def describe_file(path: Path) -> dict[str, Any]:
    """What identifies a file of text without reading it.

    Raises:
        SettingError: If the file is missing or empty.
    """
    stat = path.stat() if path.is_file() else None
    if stat is None or stat.st_size == 0:
        remedy = f"{path.name} is {'missing; add it' if stat is None else 'empty; remove it'}"
        raise SettingError("data.init_args.path", path.parent, remedy)
    return {"file": str(path.resolve()), "bytes": stat.st_size, "modified": stat.st_mtime_ns}


def hub_rows(
    hub_id: str, configuration: str | None, split: str, revision: str, columns: list[str]
) -> Iterator[dict[str, Any]]:
    """Stream the rows of a data set on the Hub, which is never in memory or on disk as a whole.

    Args:
        hub_id: Name on the Hub, or a local folder in the same layout.
        configuration: Its configuration, if it has several.
        split: Name of the split.
        revision: Branch, tag or commit.
        columns: The columns to read.

    Raises:
        SettingError: If the Hub can't be reached or has no such data.
    """
    import datasets  # takes seconds, and only the Hub needs it

    try:
        rows = datasets.load_dataset(hub_id, configuration, split=split, revision=revision, streaming=True)
        yield from rows.select_columns(columns)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        where = f"revision {revision}" if configuration is None else f"revision {revision}, {configuration}"
        remedy = (
            f"can't read its {split} split at {where} ({reason}); name a local copy with data.init_args.path, or "
            "run where there is a network"
        )
        raise SettingError("data.init_args.hub_id", hub_id, remedy) from error
