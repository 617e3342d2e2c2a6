"""Text before it is encoded: documents as blocks of whole lines, from files or from the Hub.

Errors name the file and the place in it.
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
"""A line of more bytes is cut at a space where possible, so that memory doesn't grow with it."""
COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".zip", ".7z")
SHARD = re.compile(r"-(\d+)-of-(\d+)$")
"""The end of the name of a part, without its suffix."""
_SPACES = (b" ", b"\t", b"\r", "\u3000".encode())
"""Where a long line is cut."""
_MARKS = {codecs.BOM_UTF32_LE: "UTF-32", codecs.BOM_UTF16_LE: "UTF-16", codecs.BOM_UTF16_BE: "UTF-16"}
"""The byte order marks of other encodings."""


class Text(NamedTuple):
    """A document: its name and text, and the file and byte where it begins, if it comes from a file.

    The text comes as blocks of UTF-8, each read when it is asked for. A block ends with a whole line, or within a line
    that is longer than a mebibyte.
    """

    name: str
    blocks: Iterable[bytes]
    file: Path | None = None
    start: int = 0

    def checked_blocks(self) -> Iterator[bytes]:
        """The blocks.

        Raises:
            SettingError: If one is not UTF-8; it names the file and the byte's offset.
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
    """The error for the byte at this position of a file, or of a text of this name if there is no file."""
    setting, value = ("data", name) if file is None else ("data.init_args.path", file)
    return SettingError(setting, value, f"it is not UTF-8 at byte {position}; convert or repair it")


def lines_of(block: bytes) -> list[str]:
    """The lines of a block of UTF-8, with their line ends: newlines alone."""
    *whole, rest = block.decode().split("\n")
    return [line + "\n" for line in whole] + ([rest] if rest else [])


def read_text(path: Path, name: str, start: int = 0, stop: int = sys.maxsize) -> Text:
    """A file as one document, or the part of it between two bytes; a byte order mark at its beginning is left out."""
    start = start or after_mark(path)
    return Text(name, read_blocks(lambda: path.open("rb"), start, stop), path, start)


def after_mark(path: Path) -> int:
    """Where the text of a UTF-8 file begins: after its byte order mark, if it has one.

    Raises:
        SettingError: If it has the mark of another encoding, or is UTF-16 without one: every second byte is NUL.
    """
    with path.open("rb") as stream:
        head = stream.read(1 << 12)
    encoding = next((name for mark, name in _MARKS.items() if head.startswith(mark)), None)
    if len(head) > 1 and any(head[::2]) != any(head[1::2]):
        encoding = encoding or "UTF-16"
    require(encoding is None, "data.init_args.path", path, f"it is {encoding}; convert it to UTF-8")
    return len(codecs.BOM_UTF8) if head.startswith(codecs.BOM_UTF8) else 0


def read_blocks(opened: Callable[[], BinaryIO], start: int = 0, stop: int = sys.maxsize) -> Iterator[bytes]:
    """The text between two bytes of a file, each the first of a line, as blocks."""
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
    """Where the first line begins that begins at `offset` or later, or the end of the file if none does.

    If none does for a mebibyte, it is the first space, so that a text without line ends can be cut, too.
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
    """Where to cut a part of a long line: before its last space, so that words stay whole, or between characters."""
    size = max(line.rfind(space, len(line) // 2) for space in _SPACES)
    if size > 0:
        return size
    return next((i for i in range(len(line) - 1, len(line) - 5, -1) if line[i] & 0xC0 != 0x80), len(line))


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


def require_plain(file: Path) -> None:
    """Raise a `SettingError` if a file is compressed."""
    remedy = "it is compressed, which would leave out its text; decompress it"
    require(file.suffix.lower() not in COMPRESSED, "data.init_args.path", file, remedy)


def require_all_parts(files: Iterable[Path]) -> None:
    """Raise a `SettingError` if files are numbered (`train-00000-of-00004.txt`) and one of them is missing."""
    parts: dict[tuple[Path, str, str, str], set[int]] = {}
    for file in files:
        if match := SHARD.search(file.stem):
            key = file.parent, file.stem[: match.start()], match[2], file.suffix
            parts.setdefault(key, set()).add(int(match[1]))
    for (folder, stem, total, suffix), numbers in parts.items():
        first = 0 if 0 in numbers else 1  # both ways to count are in use
        for number in range(first, first + int(total)):
            name = folder / f"{stem}-{number:0{len(total)}}-of-{total}{suffix}"
            require(number in numbers, "data.init_args.path", name, "this part of the text is missing; add it")


def describe_file(path: Path) -> dict[str, object]:
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
