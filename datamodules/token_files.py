"""Tokens on disk: one memory-mapped file a split beside an index of its documents."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from llp.errors import SettingError


@dataclass(frozen=True)
class Document:
    """A document in a token file: its start token lies at `start`, its `tokens` behind it.

    `words` and `bytes` are those of its text, `words` as its benchmark counts them.
    """

    name: str
    start: int
    tokens: int
    words: int
    bytes: int


class TokenWriter:
    """Writes a split's tokens, document by document, into a folder that nobody reads yet."""

    def __init__(self, folder: Path, split: str, vocab_size: int) -> None:
        self.dtype = np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)
        self.documents: list[Document] = []
        self._index = folder / f"{split}.json"
        self._stream = (folder / f"{split}.bin").open("wb")
        self._length = 0

    def write(self, tokens: Iterable[int] | np.ndarray) -> int:
        """Append tokens to the stream; returns how many."""
        array = np.asarray(tokens, dtype=self.dtype)
        self._stream.write(array.tobytes())
        self._length += array.size
        return array.size

    @property
    def length(self) -> int:
        """Tokens written so far."""
        return self._length

    def close(self) -> None:
        """Finish the file and write the index."""
        self._stream.close()
        index = {
            "dtype": self.dtype.name,
            "length": self._length,
            "documents": [asdict(document) for document in self.documents],
        }
        self._index.write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


class TokenFile:
    """A split's tokens as a memory map, and its documents.

    Raises:
        SettingError: If the file is not as long as its index says.
    """

    def __init__(self, folder: Path, split: str) -> None:
        path = folder / f"{split}.bin"
        try:
            index = json.loads((folder / f"{split}.json").read_text(encoding="utf-8"))
            self.documents = [Document(**document) for document in index["documents"]]
            dtype, length = np.dtype(index["dtype"]), index["length"]
            damaged = path.stat().st_size != length * dtype.itemsize
        except (OSError, ValueError, KeyError, TypeError):
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
