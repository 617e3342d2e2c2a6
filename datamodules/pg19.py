"""PG-19 (Rae et al., 2020): books of Project Gutenberg from before 1919, from files or from the Hub."""

import csv
import io
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from datamodules.documents import Text, describe_file, hub_rows, read_blocks, read_text, require_plain
from datamodules.text import TextDataModule
from llp.errors import require

_OFFICIAL = {  # books and words of the whole splits
    "train": (28_602, 1_973_136_207),
    "validation": (50, 3_007_061),
    "test": (100, 6_966_499),
}


class PG19(TextDataModule):
    """PG-19: each book is a document, which begins with the start token and is scored without context from other books.

    Word perplexity uses the official number of words if a split is complete. Otherwise it uses the words of the books
    that are there, and the report says so.

    Args:
        path: Folder with `<id>.txt` in `train/`, `validation/` and `test/`, and optionally `metadata.csv` (id, short
            title, year, URL) for the titles of the books. By default the books come from the Hub.
        hub_id: Name of the data set on the Hub, with one book per row.
        hub_revision: Branch, tag or commit of the data set.
        title_column: Column with the title.
        text_column: Column with the text.
        kwargs: Arguments of `TextDataModule`.

    Raises:
        SettingError: If a value can't be used, or if a split has no books.
    """

    name = "pg19"

    def __init__(
        self,
        path: str | None = None,
        hub_id: str = "emozilla/pg19",
        hub_revision: str = "main",
        title_column: str = "short_book_title",
        text_column: str = "text",
        **kwargs: Any,
    ) -> None:
        super().__init__(path, **kwargs)
        self.hub_id, self.hub_revision = hub_id, hub_revision
        self.title_column, self.text_column = title_column, text_column

    def source(self) -> dict[str, object]:
        if self.path is None:
            return {"hub": self.hub_id, "revision": self.hub_revision, "columns": [self.title_column, self.text_column]}
        return {split: [describe_file(book) for book in self._books(split)] for split in self.splits}

    def n_bytes(self, split: str) -> int | None:
        return None if self.path is None else sum(book.stat().st_size for book in self._books(split))

    def texts(self, split: str) -> Iterator[Text]:
        if self.path is None:
            columns = [self.title_column, self.text_column]
            for row in hub_rows(self.hub_id, None, split, self.hub_revision, columns):
                text = row[self.text_column].encode()
                yield Text(row[self.title_column], read_blocks(partial(io.BytesIO, text)))
            return
        titles = self._titles()
        for book in self._books(split):
            yield read_text(book, f"{titles.get(book.stem, 'untitled')} ({book.stem})")

    def official_words(self, split: str) -> int | None:
        books, words = _OFFICIAL[split]
        return words if len(self.files[split].documents) == books else None

    def word_note(self, split: str) -> str:
        documents = self.files[split].documents
        books, words = _OFFICIAL[split]
        counted = sum(document.words for document in documents)
        if len(documents) != books:
            return f"whitespace-separated words of the {len(documents)} books here; the official split has {books}"
        same = "as in the text" if counted == words else f"the text has {counted:,}"
        return f"the official number for the split, {words:,} ({same}); for single books, whitespace-separated words"

    def _books(self, split: str) -> list[Path]:
        assert self.path is not None
        for file in (self.path / split).glob("*.txt.*"):
            require_plain(file)
        books = sorted((self.path / split).glob("*.txt"), key=lambda book: (len(book.stem), book.stem))
        remedy = f"the {split} split is missing: there is no {split}/<id>.txt"
        require(len(books) > 0, "data.init_args.path", self.path, remedy)
        return books

    def _titles(self) -> dict[str, str]:
        assert self.path is not None
        metadata = self.path / "metadata.csv"
        if not metadata.is_file():
            return {}
        with metadata.open(encoding="utf-8-sig", newline="") as stream:
            return {number: title for number, title, *_ in filter(None, csv.reader(stream))}
