"""Tokens on disk: one memory-mapped file per split beside an index of its documents, one line of JSON each."""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from datamodules.prepared_folder import unusable

_BLOCK = 1 << 22  # bytes


@dataclass(frozen=True)
class Document:
    """A document in a token file: its start token lies at `start`, its `tokens` after it.

    `words` are the benchmark's words of its text, `plain_words` the whitespace-separated ones, `bytes` those of UTF-8.
    `sha256` is that of the text, `tokens_sha256` that of the tokens as they lie in the file, the start token included.
    """

    name: str
    start: int
    tokens: int
    words: int
    plain_words: int
    bytes: int
    sha256: str
    tokens_sha256: str


class TokenWriter:
    """Writes a split's tokens, document by document, and after a kill goes on where the last whole document ends.

    A document of the index counts as whole if its tokens are in the token file, which its digest tells: after a power
    cut either file may be older than the other.

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
        self._index, self._tokens = index.open("r+b"), tokens.open("r+b")
        self.documents: list[Document] = []
        self.length = 0
        index_size = 0
        for line in self._index:
            document = self._whole_document(line)
            if document is None:
                break
            self._append(document)
            index_size += len(line)
        for stream, size in ((self._index, index_size), (self._tokens, self.length * dtype.itemsize)):
            stream.seek(size)
            stream.truncate()
        self._begin_document()

    def _whole_document(self, line: bytes) -> Document | None:
        """The document of a line of the index; None if the line or the document's tokens are not whole."""
        try:
            document = Document(**json.loads(line))
            left = (1 + document.tokens) * self.dtype.itemsize
        except (ValueError, TypeError):
            return None
        digest = hashlib.sha256()
        while block := self._tokens.read(min(left, _BLOCK)):
            digest.update(block)
            left -= len(block)
        return document if line.endswith(b"\n") and digest.hexdigest() == document.tokens_sha256 else None

    def _append(self, document: Document) -> None:
        self.documents.append(document)
        self.length += 1 + document.tokens

    def _begin_document(self) -> None:
        self._written = 0  # tokens
        self._digest = hashlib.sha256()

    def write(self, tokens: np.ndarray) -> None:
        """Append tokens of the document at hand, its start token first."""
        data = tokens.astype(self.dtype).tobytes()
        self._tokens.write(data)
        self._digest.update(data)
        self._written += len(tokens)

    def finish(self, name: str, words: int, plain_words: int, n_bytes: int, sha256: str) -> None:
        """The document at hand is whole: from here on a kill loses nothing of it. For the arguments see `Document`."""
        digests = sha256, self._digest.hexdigest()
        document = Document(name, self.length, self._written - 1, words, plain_words, n_bytes, *digests)
        self._tokens.flush()  # before the line that vouches for them
        self._index.write((json.dumps(asdict(document)) + "\n").encode())
        self._index.flush()
        self._append(document)
        self._begin_document()

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
        self.path, self.index = folder / f"{split}.bin", folder / f"{split}.jsonl"
        try:
            lines = self.index.read_text(encoding="utf-8").splitlines()
            self.documents = [Document(**json.loads(line)) for line in lines]
            length = sum(1 + document.tokens for document in self.documents)
        except (OSError, ValueError, TypeError) as error:
            raise unusable(self.index) from error
        if length == 0 or not self.path.is_file() or self.path.stat().st_size != length * dtype.itemsize:
            raise unusable(self.path, "is missing, damaged or cut short")
        self.tokens: np.ndarray = np.memmap(self.path, dtype=dtype, mode="r", shape=(length,))

    @cached_property
    def starts(self) -> list[int]:
        """Where the documents begin, in ascending order."""
        return [document.start for document in self.documents]

    def document_at(self, place: int) -> Document:
        """The document that holds the token at a place, which may be its start token."""
        return self.documents[bisect_right(self.starts, place) - 1]

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
