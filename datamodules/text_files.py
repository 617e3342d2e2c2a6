"""Any folder of text: `.txt`, one document a file, or `.jsonl`, one document a line."""

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datamodules.documents import Text, blocks_of, describe_file, read_text, require_folder
from datamodules.text import TextDataModule
from llp.errors import SettingError, require


class TextFiles(TextDataModule):
    """Documents from `.txt` and `.jsonl` files, split by folder or by share.

    Where the folder has subfolders `train`, `validation` and `test`, each holds its split. Else documents are dealt out
    evenly, in the order of files and lines, so that validation and test get their shares.

    Args:
        path: The folder.
        text_key: The key of a document's text in a line of `.jsonl`.
        validation_share: Share of the documents for validation, where there are no subfolders.
        test_share: Share of the documents for the test, where there are no subfolders.
        kwargs: The arguments of `TextDataModule`.

    Raises:
        SettingError: If a value can't be used, or the text can't be read.
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
        self.folder = Path(path).expanduser()
        self.text_key, self.shares = text_key, (validation_share, test_share)
        for setting, share in zip(("validation_share", "test_share"), self.shares, strict=True):
            require(0 < share <= 0.5, f"data.init_args.{setting}", share, "set it above 0 and to 0.5 at most")

    def source(self) -> dict[str, Any]:
        files = {split: [describe_file(file, split) for file in self._files(split)] for split in self.splits}
        return {**files, "text_key": self.text_key, "shares": self.shares, "by_folder": self._by_folder()}

    def n_bytes(self, split: str) -> int | None:
        return sum(file.stat().st_size for file in self._files(split)) if self._by_folder() else None

    def texts(self, split: str) -> Iterator[Text]:
        for number, text in enumerate(self._documents(split)):
            if self._by_folder() or self._dealt_to(number) == split:
                yield text

    def _by_folder(self) -> bool:
        return all((self.folder / split).is_dir() for split in self.splits)

    def _files(self, split: str) -> list[Path]:
        require_folder(self.folder)
        folder = self.folder / split if self._by_folder() else self.folder
        files = sorted(file for file in folder.rglob("*") if file.suffix in (".txt", ".jsonl"))
        require(len(files) > 0, "data.init_args.path", folder, "there is no .txt and no .jsonl file; add one")
        return files

    def _dealt_to(self, number: int) -> str:
        """Evenly spread: a document is held out where its number times the share passes a whole one."""
        validation, test = self.shares
        if not _passes_whole(number, validation + test):
            return "train"
        held_out = math.floor(round(number * (validation + test), 9))
        return "test" if _passes_whole(held_out, test / (validation + test)) else "validation"

    def _documents(self, split: str) -> Iterator[Text]:
        for file in self._files(split):
            name = str(file.relative_to(self.folder))
            if file.suffix == ".txt":
                yield read_text(file, name)
                continue
            lines = (line for block in read_text(file, name).lines() for line in block)
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield Text(f"{name}:{number}", blocks_of([self._text_of(line, file, number)]))

    def _text_of(self, line: str, file: Path, number: int) -> str:
        try:
            text: str = json.loads(line)[self.text_key]
            text.encode()  # JSON can write half a surrogate pair, which is no text
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            remedy = f"line {number} of {file.name} has no text under {self.text_key!r}; repair it or set text_key"
            raise SettingError("data.init_args.path", self.folder, remedy) from error
        return text


def _passes_whole(number: int, share: float) -> bool:
    """Whether a whole number lies in (number * share, (number + 1) * share]; rounded: 0.1 * 10 is to be 1."""
    return math.floor(round((number + 1) * share, 9)) > math.floor(round(number * share, 9))
