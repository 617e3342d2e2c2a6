"""Text before it is encoded: documents as blocks of whole lines, from files or from the Hub.

Errors name the file and the position in it.
"""

import codecs
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from llp.errors import SettingError, require

_BLOCK = 1 << 18  # bytes
_LONGEST = 1 << 20
"""Lines with more bytes are cut, at a space if possible, so that memory is bounded."""
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip", ".7z")
SHARD = re.compile(r"-(\d+)-of-(\d+)$")
"""Matches the end of the name of one of several parts, without its suffix."""
_SPACES = (b" ", b"\t", b"\r", "\u3000".encode())
"""The spaces at which a long line is cut."""
_MARKS = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}
"""The byte order marks of other encodings."""


class Text(NamedTuple):
    """A document: its name, its text, and the file and offset in bytes at which it begins, if it comes from a file.

    The text is an iterable of UTF-8 blocks, which are read on demand. A block consists of whole lines, but may end
    within a line that is longer than a mebibyte.
    """

    name: str
    blocks: Iterable[bytes]
    file: Path | None = None
    start: int = 0

    def checked_blocks(self) -> Iterator[bytes]:
        """Yield the blocks after checking that they are UTF-8.

        Raises:
            SettingError: If a block is not UTF-8. The message names the file and the offset of the byte.
        """
        offset = self.start
        for block in self.blocks:
            try:
                block.decode()
            except UnicodeDecodeError as error:
                raise not_utf8(self.file, self.name, offset + error.start) from error
            yield block
            offset += len(block)

    def lines(self) -> Iterator[list[str]]:
        """The lines of each checked block, with their line ends."""
        return map(lines_of, self.checked_blocks())


def not_utf8(file: Path | None, name: str, position: int) -> SettingError:
    """The error for a byte that is not UTF-8, at this position of a file, or of the named text if there is no file."""
    setting, value = ("data", name) if file is None else ("data.init_args.path", file)
    return SettingError(setting, value, f"it is not UTF-8 at byte {position}; convert or repair it")


def lines_of(block: bytes) -> list[str]:
    """The lines of a block of UTF-8, with their line ends. Only newlines end a line."""
    *whole, rest = block.decode().split("\n")
    return [line + "\n" for line in whole] + ([rest] if rest else [])


def read_text(path: Path, name: str, start: int = 0, stop: int = sys.maxsize) -> Text:
    """A file, or its bytes `start` .. `stop` - 1, as one document without a byte order mark."""
    start = start or after_mark(path)
    return Text(name, read_blocks(lambda: path.open("rb"), start, stop), path, start)


def after_mark(path: Path) -> int:
    """The offset at which the text of a UTF-8 file begins: after its byte order mark, if it has one.

    Raises:
        SettingError: If the file has the byte order mark of another encoding, or if it appears to be UTF-16 without
            one, because every second byte is NUL.
    """
    with path.open("rb") as stream:
        head = stream.read(1 << 12)
    encoding = next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)
    if len(head) > 1 and any(head[::2]) != any(head[1::2]):
        encoding = encoding or "UTF-16"
    require(encoding is None, "data.init_args.path", path, f"it is {encoding}; convert it to UTF-8")
    return len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0


def read_blocks(opened: Callable[[], BinaryIO], start: int = 0, stop: int = sys.maxsize) -> Iterator[bytes]:
    """Yield the text between two offsets of a file, both at the start of a line, as blocks."""
    with opened() as stream:
        stream.seek(start)
        while block := stream.read(min(_BLOCK, stop - start)):
            if not block.endswith(b"\n"):
                block += (rest := stream.readline(min(_LONGEST, stop - start - len(block))))
                if len(rest) == _LONGEST and not rest.endswith(b"\n"):
                    block = block[: _cut(block)]
            start += len(block)
            stream.seek(start)
            yield block


def line_start(stream: BinaryIO, offset: int) -> int:
    """The offset of the first line that begins at `offset` or later, or the end of the file if there is none.

    If no line begins within a mebibyte, it is the offset of the first space, so that a text without line ends can be
    cut, too.
    """
    if offset == 0:
        return 0
    stream.seek(offset - 1)
    rest = stream.readline(_LONGEST)
    if len(rest) < _LONGEST or rest.endswith(b"\n"):
        return offset - 1 + len(rest)
    spaces = [place for space in _SPACES if (place := rest.find(space, 1)) > 0]
    return offset - 1 + min(spaces, default=_cut(rest))


def _cut(line: bytes) -> int:
    """Where to cut a long line: before its last space, so that words stay whole, or else between two characters."""
    size = max(line.rfind(space, len(line) // 2) for space in _SPACES)
    if size > 0:
        return size
    return next((i for i in range(len(line) - 1, len(line) - 5, -1) if line[i] & 0xC0 != 0x80), len(line))


def blocks_of(lines: Iterable[str]) -> Iterator[bytes]:
    """Join lines of text into blocks of UTF-8."""
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


def require_plain(file: Path) -> None:
    """Raise a `SettingError` if a file is compressed."""
    remedy = "it is compressed, so its text would be left out; decompress it"
    require(file.suffix.lower() not in COMPRESSED, "data.init_args.path", file, remedy)


def require_all_parts(files: Iterable[Path]) -> None:
    """Raise a `SettingError` if files are numbered (`train-00000-of-00004.txt`) and one of them is missing."""
    parts: dict[tuple[Path, str, str, str], set[int]] = {}
    for file in files:
        if match := SHARD.search(file.stem):
            key = file.parent, file.stem[: match.start()], match[2], file.suffix
            parts.setdefault(key, set()).add(int(match[1]))
    for (folder, stem, total, suffix), numbers in parts.items():
        first = 0 if 0 in numbers else 1  # parts are numbered from 0 or from 1
        for number in range(first, first + int(total)):
            name = folder / f"{stem}-{number:0{len(total)}}-of-{total}{suffix}"
            require(number in numbers, "data.init_args.path", name, "this part of the text is missing; add it")


def describe_file(path: Path) -> dict[str, object]:
    """Path, size and modification time of a text file, which identify it without reading it.

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
    """Stream the rows of a data set on the Hub. The whole data set is never in memory or on disk.

    Args:
        hub_id: Name on the Hub, or a local folder with the same layout.
        configuration: Name of the configuration, if the data set has several.
        split: Name of the split.
        revision: Branch, tag or commit.
        columns: The columns to read.

    Raises:
        SettingError: If the Hub can't be reached or has no such data.
    """
    import datasets  # takes seconds, and is only needed for the Hub

    try:
        rows = datasets.load_dataset(hub_id, configuration, split=split, revision=revision, streaming=True)
        yield from rows.select_columns(columns)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        where = f"revision {revision}" if configuration is None else f"revision {revision}, {configuration}"
        remedy = (
            f"can't read its {split} split at {where} ({reason}); set data.init_args.path to a local copy, or run "
            "with network access"
        )
        raise SettingError("data.init_args.hub_id", hub_id, remedy) from error
