"""Texts that a test writes itself."""

import hashlib

from datamodules import Bytes, TextFiles
from datamodules.documents import Text, blocks_of
from datamodules.text import TextDataModule
from llp.scoring.metric import Document


class Given(TextDataModule):
    """Texts from a dictionary: {split: {name: text}}."""

    name = "given"

    def __init__(self, documents, **kwargs):
        super().__init__(path=None, **{"tokenizer": Bytes(), "window_len": 4, **kwargs})
        self.documents = documents

    def source(self):
        return {"digest": hashlib.sha256(repr(self.documents).encode()).hexdigest()}

    def texts(self, split):
        for name, text in self.documents[split].items():
            yield Text(name, blocks_of(text.splitlines(keepends=True)))


DOCUMENTS = {
    "train": {"a": "one two\n" * 9, "b": "three\n"},
    "validation": {"c": "four five\n", "d": "six\n"},
    "test": {"e": "seven é\n"},
}


def text_files(path, tmp_path, **settings):
    """A file or a folder of text as bytes."""
    defaults = {"tokenizer": Bytes(), "window_len": 4, "cache_dir": str(tmp_path / "cache")}
    return TextFiles(str(path), **(defaults | settings))


def write_books(folder, books, title="Book"):
    """PG-19's layout, of {split: {number: text}}."""
    for split, texts in books.items():
        (folder / split).mkdir(parents=True)
        for number, text in texts.items():
            (folder / split / f"{number}.txt").write_text(text, encoding="utf-8", newline="")
    rows = [f"{number},{title},1900,url\n" for texts in books.values() for number in texts]
    (folder / "metadata.csv").write_text("".join(rows))


def document(name, tokens, words, n_bytes, plain_words=7):
    """A document's sizes, as scores know it."""
    return Document(name, 0, tokens, words, plain_words, n_bytes, "", "")
