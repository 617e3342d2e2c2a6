"""Tokens on disk: one memory-mapped file a split beside an index of its documents, a line of JSON each."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from llp.errors import SettingError


@dataclass(frozen=True)
class Document:
    """A document in a token file: its start token lies at `start`, its `tokens` behind it.

    `words` are the benchmark's words of its text, `plain_words` the whitespace-separated ones, `bytes` those of UTF-8.
    """

    name: str
    start: int
    tokens: int
    words: int
    plain_words: int
    bytes: int
    sha256: str


class TokenWriter:
    """Writes a split's tokens, document by document, and goes on behind the last whole one after a kill.

    Args:
        folder: Where to; nobody reads it yet.
        split: Its name.
        dtype: Of the tokens.
    """

    def __init__(self, folder: Path, split: str, dtype: np.dtype) -> None:
        self.dtype = dtype
        index, tokens = folder / f"{split}.jsonl", folder / f"{split}.bin"
        index.touch()
        tokens.touch()
        whole, _, _ = index.read_text(encoding="utf-8").rpartition("\n")  # a line that was cut off is no document
        self.documents = [Document(**json.loads(line)) for line in whole.splitlines()]
        self.length = sum(1 + document.tokens for document in self.documents)
        self._index = index.open("r+b")
        self._index.truncate(len(whole.encode()) + 1 if whole else 0)
        self._index.seek(0, 2)
        self._tokens = tokens.open("r+b")
        self._tokens.truncate(self.length * dtype.itemsize)
        self._tokens.seek(0, 2)

    def write(self, tokens: np.ndarray) -> None:
        """Append tokens of the document at hand."""
        self._tokens.write(tokens.astype(self.dtype).tobytes())

    def finish(self, document: Document) -> None:
        """The document at hand is whole: from here on a kill loses nothing of it."""
        self._tokens.flush()
        self._index.write((json.dumps(asdict(document)) + "\n").encode())
        self._index.flush()
        self.documents.append(document)
        self.length += 1 + document.tokens

    def close(self) -> None:
        """Close both files."""
        self._tokens.close()
        self._index.close()


class TokenFile:
    """A split's tokens as a memory map, and its documents.

    Raises:
        SettingError: If the file is not as long as its index says.
    """

    def __init__(self, folder: Path, split: str, dtype: np.dtype) -> None:
        path = folder / f"{split}.bin"
        length = 0
        try:
            lines = (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
            self.documents = [Document(**json.loads(line)) for line in lines]
            length = sum(1 + document.tokens for document in self.documents)
            damaged = length == 0 or path.stat().st_size != length * dtype.itemsize
        except (OSError, ValueError, TypeError):
            damaged = True
        if damaged:
            raise SettingError(
                "data.init_args.cache_dir",
                folder.parent,
                f"the token file {path} is damaged or cut short; remove {folder}, the next run makes it anew",
            )
        self.tokens: np.ndarray = np.memmap(path, dtype=dtype, mode="r", shape=(length,))

    def counts(self, vocab_size: int) -> np.ndarray:
        """How often each token occurs in the text: (vocab_size,). The documents' start tokens are not counted."""
        counts = np.zeros(vocab_size, dtype=np.int64)
        for block in blocks(self.tokens, 1 << 24):
            counts += np.bincount(block, minlength=vocab_size)
        starts = self.tokens[[document.start for document in self.documents]]
        return counts - np.bincount(starts, minlength=vocab_size)

    def text_of(self, document: Document) -> np.ndarray:
        """The tokens of a document's text, without its start token."""
        return self.tokens[document.start + 1 : document.start + 1 + document.tokens]


def blocks(array: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Consecutive pieces of an array, so that a memory map never sits in memory whole."""
    return (array[i : i + size] for i in range(0, len(array), size))
