"""Text before it is encoded: documents as blocks of whole lines, with errors that name the file and the place."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from llp.errors import SettingError

_BLOCK = 1 << 18  # bytes


class Text(NamedTuple):
    """A document: its name, blocks of UTF-8 that end with whole lines, and the file that they come from, if any."""

    name: str
    blocks: Iterable[bytes]
    file: Path | None = None

    def lines(self) -> Iterator[list[str]]:
        """The lines of each block, each with its line end.

        Raises:
            SettingError: Where the text is not UTF-8; it names the file and the byte's offset.
        """
        offset = 0
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
    return Text(name, _read_blocks(path), path)


def _read_blocks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            yield block + stream.readline()


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


def require_folder(folder: Path) -> None:
    """Raise a `SettingError` unless the folder is there."""
    if not folder.is_dir():
        raise SettingError("data.init_args.path", folder, "there is no such folder; give the one that holds the text")


def describe_file(path: Path, split: str) -> dict[str, Any]:
    """What identifies a file of a split without reading it.

    Raises:
        SettingError: If its folder or the file is missing, or it is empty.
    """
    require_folder(path.parent)
    if not path.is_file():
        raise SettingError("data.init_args.path", path.parent, f"the {split} split is missing: there is no {path.name}")
    stat = path.stat()
    if stat.st_size == 0:
        raise SettingError("data.init_args.path", path.parent, f"{path.name} of the {split} split is empty; remove it")
    return {"file": str(path.resolve()), "bytes": stat.st_size, "modified": stat.st_mtime_ns}
