"""The user's own text: `.txt`, one document per file, or `.jsonl`, one per line, in a folder or a single file."""

import io
import json
import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from datamodules.documents import (
    COMPRESSED,
    SHARD,
    Text,
    after_mark,
    describe_file,
    line_start,
    not_utf8,
    read_blocks,
    read_text,
    require_all_parts,
    require_plain,
)
from datamodules.text import TextDataModule
from llp.errors import SettingError, require

_SUFFIXES = (".txt", ".jsonl")
_NAMES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}


class _Document(NamedTuple):
    """A document that has not been read yet. `file` is set if the document is a whole file."""

    name: str
    open: Callable[[], BinaryIO]
    file: Path | None = None

    def text(self, name: str, start: int = 0, stop: int = sys.maxsize) -> Text:
        """The bytes `start` .. `stop` - 1 of the document."""
        if self.file is not None:
            return read_text(self.file, name, start, stop)
        return Text(name, read_blocks(self.open, start, stop), start=start)


class TextFiles(TextDataModule):
    """Documents from `.txt` and `.jsonl` files, split by name or by share.

    Subfolders or files named `train`, `validation` (or `valid`, `val`, `dev`) and `test` hold the splits. A folder with
    only some of these names, or with other text beside them, is refused.

    If nothing is named after a split, whole documents are dealt out evenly, in the order of files and lines, so that
    validation and test get their shares. If there are too few documents for that (fewer than 20 with the default
    shares), each document is cut at line ends into a training part, a validation part and a test part, in this order.

    The preparation logs how the text was split. Hidden files and folders are ignored.

    Args:
        path: The folder, or a single file of any name.
        text_key: Key of the text in a line of `.jsonl`.
        validation_share: Fraction of the text for validation, if nothing is named after a split.
        test_share: Fraction of the text for the test, if nothing is named after a split.
        kwargs: Arguments of `TextDataModule`.

    Raises:
        SettingError: If a value can't be used, or the text can't be read or split.
    """

    name = "text_files"

    def __init__(
        self,
        path: str,
        text_key: str = "text",
        validation_share: float = 0.05,
        test_share: float = 0.05,
        **kwargs: Any,
    ) -> None:
        super().__init__(path, **kwargs)
        self.root, self.text_key = Path(path).expanduser(), text_key
        self.validation_share, self.test_share = validation_share, test_share
        for setting, share in (("validation_share", validation_share), ("test_share", test_share)):
            require(0 < share <= 0.5, f"data.init_args.{setting}", share, "set it above 0 and to 0.5 at most")
        remedy = f"with test_share = {test_share} nothing is left for training; lower one of them"
        require(validation_share + test_share < 1, "data.init_args.validation_share", validation_share, remedy)

    def source(self) -> dict[str, object]:
        named = self._named()
        if named is not None:
            described = {split: [describe_file(file) for file in files] for split, (_, files) in named.items()}
            return {**described, "text_key": self.text_key}
        return {
            "files": [describe_file(file) for file in self._files()],
            "text_key": self.text_key,
            "validation_share": self.validation_share,
            "test_share": self.test_share,
            "cut": self._is_cut(),
        }

    def splits_note(self) -> str:
        named = self._named()
        if named is not None:
            counts = {split: _counted(self.texts(split)) for split in self.splits}
            return ", ".join(f"{split} is {named[split][0]} ({counts[split]})" for split in self.splits)
        if self._is_cut():
            number = _counted(self._documents(self._files()))
            sizes = ", ".join(f"{self.n_bytes(split):,} bytes for {split}" for split in self.splits)
            return f"too few documents for whole ones in each split ({number}), so each is cut at line ends: {sizes}"
        dealt = Counter(self._split_of(number) for number, _ in enumerate(self._documents(self._files())))
        shares = ", ".join(f"{dealt[split]:,} for {split}" for split in self.splits)
        return f"no file is named after a split, so {dealt.total():,} documents are dealt out evenly: {shares}"

    def n_bytes(self, split: str) -> int | None:
        named = self._named()
        if named is not None:
            return sum(file.stat().st_size for file in named[split][1])
        return sum(stop - start for _, start, stop in self._parts(split)) if self._is_cut() else None

    def texts(self, split: str) -> Iterator[Text]:
        named = self._named()
        if named is None and self._is_cut():
            for document, start, stop in self._parts(split):
                yield document.text(f"{document.name}, bytes {start}-{stop}", start, stop)
            return
        for number, document in enumerate(self._documents(self._files() if named is None else named[split][1])):
            if named is not None or self._split_of(number) == split:
                yield document.text(document.name)

    # Files and documents

    def _files(self) -> list[Path]:
        if self.root.is_file():
            require_plain(self.root)
            return [self.root]
        remedy = "there is no such file or folder; set it to the one that contains the text"
        require(self.root.is_dir(), "data.init_args.path", self.root, remedy)
        found = sorted(file for file in self.root.rglob("*") if _is_text(file) and file.is_file())
        files = [file for file in found if not any(part[0] == "." for part in file.relative_to(self.root).parts)]
        require(len(files) > 0, "data.init_args.path", self.root, "it contains no .txt or .jsonl file; add one")
        for file in files:
            require_plain(file)
        require_all_parts(files)
        return files

    def _documents(self, files: list[Path]) -> Iterator[_Document]:
        for file in files:
            name = file.name if file == self.root else str(file.relative_to(self.root))
            if file.suffix.lower() != ".jsonl":
                yield _Document(name, partial(_open, file), file)
                continue
            with file.open("rb") as stream:
                offset = stream.seek(after_mark(file))
                for number, line in enumerate(stream, start=1):
                    if line.strip():
                        yield _Document(f"{name}:{number}", partial(self._open_line, line, file, number, offset))
                    offset += len(line)

    def _open_line(self, line: bytes, file: Path, number: int, offset: int) -> BinaryIO:
        try:
            text: str = json.loads(line.decode())[self.text_key]
            return io.BytesIO(text.encode())  # fails on half a surrogate pair, which JSON can contain
        except UnicodeDecodeError as error:
            raise not_utf8(file, file.name, offset + error.start) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            remedy = f"line {number} has no text under {self.text_key!r}; repair it or set text_key"
            raise SettingError("data.init_args.path", file, remedy) from error

    # Splits by name

    def _named(self) -> dict[str, tuple[str, list[Path]]] | None:
        """For each split, the name of its subfolder, file or shards, and its files; None if nothing is named like that.

        Raises:
            SettingError: If only some splits are there, if a split is there twice, or if a file belongs to no split.
        """
        files = self._files()
        if files == [self.root]:
            return None
        found: dict[str, dict[str, list[Path]]] = {split: {} for split in _NAMES}
        loose = []
        for file in files:
            name, split = _name_and_split(file.relative_to(self.root))
            if split is None:
                loose.append(name)
            else:
                found[split].setdefault(name, []).append(file)
        names = ", ".join(name for members in found.values() for name in members)
        if not names:
            return None
        if loose or any(len(members) != 1 for members in found.values()):
            rest = f", and other text in {loose[0]}" if loose else ""
            remedy = f"it has the splits {names}{rest}; it needs exactly one name for each split, and no other text"
            raise SettingError("data.init_args.path", self.root, remedy)
        return {split: next(iter(members.items())) for split, members in found.items()}

    # Splits by share

    def _is_cut(self) -> bool:
        """Whether there are too few documents for each split to get a whole one."""
        dealt = set()
        for number, _ in enumerate(self._documents(self._files())):
            dealt.add(self._split_of(number))
            if len(dealt) == len(self.splits):
                return False
        return True

    def _split_of(self, number: int) -> str:
        """The split that the document with this number belongs to, if documents are not cut.

        Held-out documents are spread evenly: one is held out wherever number times share passes a whole number.
        """
        held_out_share = self.validation_share + self.test_share
        if not _passes_whole(number, held_out_share):
            return "train"
        held_out = math.floor(round(number * held_out_share, 9))
        return "test" if _passes_whole(held_out, self.test_share / held_out_share) else "validation"

    def _parts(self, split: str) -> Iterator[tuple[_Document, int, int]]:
        """Yield each document with the offsets of a split's part of it, whose beginning and end are starts of lines."""
        for document in self._documents(self._files()):
            with document.open() as stream:
                size = stream.seek(0, io.SEEK_END)
                start, stop = (line_start(stream, cut) for cut in self._part(split, size))
            if start < stop:
                yield document, start, stop

    def _part(self, split: str, size: int) -> tuple[int, int]:
        """Where a split's part of a document of `size` bytes begins and ends, before cuts move to starts of lines."""
        train = round(size * (1 - self.validation_share - self.test_share))
        validation = round(size * (1 - self.test_share))
        return {"train": (0, train), "validation": (train, validation), "test": (validation, size)}[split]


def _counted(documents: Iterator[object]) -> str:
    number = sum(1 for _ in documents)
    return f"{number:,} document{'s' * (number != 1)}"


def _is_text(file: Path) -> bool:
    """Whether a file has the suffix of a text file, possibly followed by that of a compressed file."""
    name = file.with_suffix("") if file.suffix.lower() in COMPRESSED else file
    return name.suffix.lower() in _SUFFIXES


def _open(file: Path) -> BinaryIO:
    return file.open("rb")


def _name_and_split(file: Path) -> tuple[str, str | None]:
    """The subfolder that a file is in, or its own name, and the split with this name, if there is one."""
    if len(file.parts) > 1:
        name, bare = f"{file.parts[0]}/", file.parts[0]
    else:
        bare = SHARD.sub("", file.stem)
        name = f"{bare}{'' if bare == file.stem else '-*'}{file.suffix}"
    return name, next((split for split in _NAMES if bare.lower() in _NAMES[split]), None)


def _passes_whole(number: int, share: float) -> bool:
    """Whether a whole number lies in (number * share, (number + 1) * share]; rounded, so that 0.1 * 10 is 1."""
    return math.floor(round((number + 1) * share, 9)) > math.floor(round(number * share, 9))
