"""Any text of one's own: `.txt`, one document per file, or `.jsonl`, one document per line; a folder, or one file."""

import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from datamodules.documents import Text, describe_file, line_start, open_file, read_blocks, read_text, size_of
from datamodules.named_splits import NamedSplit, named_splits
from datamodules.shares import Shares
from datamodules.text import TextDataModule
from llp.errors import SettingError, require

_SUFFIXES = (".txt", ".jsonl")


class _Source(NamedTuple):
    """A document that is not read yet. `file` is that of a document that is a file of its own."""

    name: str
    open: Callable[[], BinaryIO]
    file: Path | None = None


class TextFiles(TextDataModule):
    """Documents from `.txt` and `.jsonl` files, split by name or by share.

    In a folder with subfolders or files named `train`, `validation` (or `valid`, `val`, `dev`) and `test`, each holds
    its split; a folder that names only some of them, or has text beside them, is refused. Otherwise whole documents are
    dealt out evenly, in the order of files and lines, so that validation and test get their shares. Where there are too
    few documents for that (fewer than 20 with the default shares), each is cut at line ends: its beginning is for
    training, then comes the part for validation, and its end is for the test. What became which split is said when the
    text is prepared. Hidden files and folders are left out.

    Args:
        path: The folder, or a single file of any name.
        text_key: The key of a document's text in a line of `.jsonl`.
        validation_share: Share of the text for validation, where nothing is named after a split.
        test_share: Share of the text for the test, where nothing is named after a split.
        kwargs: The arguments of `TextDataModule`.

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
        self.root = Path(path).expanduser()
        self.text_key, self.shares = text_key, Shares(validation_share, test_share)

    def source(self) -> dict[str, Any]:
        named = self._named()
        if named is not None:
            files = {name: [describe_file(file, name) for file in split.files] for name, split in named.items()}
            return {**files, "text_key": self.text_key}
        files = {"files": [describe_file(file) for file in self._files()]}
        if self._is_cut():
            for split in self.splits:  # now, not after the tokenizer was trained
                self._require_part(split)
        shares = {"validation_share": self.shares.validation, "test_share": self.shares.test}
        return {**files, "text_key": self.text_key, **shares, "cut": self._is_cut()}

    def splits_note(self) -> str:
        named = self._named()
        if named is not None:
            counts = {split: _documents(sum(1 for _ in self.texts(split))) for split in self.splits}
            return ", ".join(f"{split} is {named[split].name} ({counts[split]})" for split in self.splits)
        number = sum(1 for _ in self._sources(self._files()))
        if not self._is_cut():
            dealt = Counter(self.shares.split_of(document) for document in range(number))
            shares = ", ".join(f"{dealt[split]:,} for {split}" for split in self.splits)
            return f"no file is named after a split, so the {number:,} documents are dealt out evenly: {shares}"
        sizes = ", ".join(f"{self.n_bytes(split):,} bytes for {split}" for split in self.splits)
        each = "it is" if number == 1 else "each is"
        return f"{_documents(number)}, too few to deal out, so {each} cut at line ends, in this order: {sizes}"

    def n_bytes(self, split: str) -> int | None:
        named = self._named()
        if named is not None:
            return sum(file.stat().st_size for file in named[split].files)
        return sum(stop - start for _, start, stop in self._parts(split)) if self._is_cut() else None

    def texts(self, split: str) -> Iterator[Text]:
        named = self._named()
        if named is None and self._is_cut():
            for source, start, stop in self._parts(split):
                name = f"{source.name}, bytes {start}-{stop}"
                yield Text(name, read_blocks(source.open, start, stop), source.file, start)
            return
        for number, source in enumerate(self._sources(self._files() if named is None else named[split].files)):
            if named is not None or self.shares.split_of(number) == split:
                yield Text(source.name, read_blocks(source.open), source.file)

    # Which files, and how they are split

    def _files(self) -> list[Path]:
        if self.root.is_file():
            return [self.root]
        remedy = "there is no such file or folder; give the one that holds the text"
        require(self.root.is_dir(), "data.init_args.path", self.root, remedy)
        files = sorted(file for file in self.root.rglob("*") if file.suffix.lower() in _SUFFIXES and file.is_file())
        visible = [file for file in files if not any(part[0] == "." for part in file.relative_to(self.root).parts)]
        require(len(visible) > 0, "data.init_args.path", self.root, "there is no .txt and no .jsonl file; add one")
        return visible

    def _named(self) -> dict[str, NamedSplit] | None:
        files = self._files()
        return None if files == [self.root] else named_splits(self.root, files)

    def _is_cut(self) -> bool:
        """Whether there are too few documents to deal out whole ones to all three splits."""
        dealt = set()
        for number, _ in enumerate(self._sources(self._files())):
            dealt.add(self.shares.split_of(number))
            if len(dealt) == len(self.splits):
                return False
        return True

    def _parts(self, split: str) -> Iterator[tuple[_Source, int, int]]:
        """A split's part of each document: its first byte, and the one after its last. Both begin a line."""
        for source in self._sources(self._files()):
            with source.open() as stream:
                size = size_of(stream)
                start, stop = (line_start(stream, place) for place in self.shares.part(split, size))
            if start < stop:
                yield source, start, stop

    def _require_part(self, split: str) -> None:
        setting = "test_share" if split == "test" else "validation_share"
        share = self.shares.test if split == "test" else self.shares.validation
        remedy = f"no line of the text begins in the part for {split}; change it, or give more text in lines"
        require(any(self._parts(split)), f"data.init_args.{setting}", share, remedy)

    # Documents

    def _sources(self, files: list[Path]) -> Iterator[_Source]:
        for file in files:
            name = file.name if file == self.root else str(file.relative_to(self.root))
            if file.suffix.lower() != ".jsonl":
                yield _Source(name, partial(open_file, file), file)
                continue
            lines = (line for block in read_text(file, name).lines() for line in block)
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield _Source(f"{name}:{number}", partial(self._open_line, line, file, number))

    def _open_line(self, line: str, file: Path, number: int) -> BinaryIO:
        try:
            text: str = json.loads(line)[self.text_key]
            return io.BytesIO(text.encode())  # JSON can write half a surrogate pair, which is no text
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            remedy = f"line {number} of {file.name} has no text under {self.text_key!r}; repair it or set text_key"
            raise SettingError("data.init_args.path", self.root, remedy) from error


def _documents(number: int) -> str:
    return f"{number:,} document{'' if number == 1 else 's'}"
