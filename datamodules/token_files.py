"""Tokens on disk: for each split, a prepared folder has a file of tokens and an index of its documents.

Its `about.json` says where the text came from, and has the digests of all files, including its own.
"""

import json
from bisect import bisect_right
from functools import cached_property
from pathlib import Path
from typing import TypedDict, cast

import numpy as np

from llp.atomic_files import KEY, file_sha256, file_sha256_once, json_with_digest, own_sha256
from llp.errors import SettingError
from llp.scoring.metric import Document


class About(TypedDict):
    """The entries of `about.json` that are read. The others say where the text came from."""

    data_fingerprint: str
    tokenizer_fingerprint: str
    sha256: dict[str, str]
    """Digest of each file, by name."""


def unusable(path: Path, reason: str = "is missing or damaged") -> SettingError:
    """The error for a file of a prepared folder that can't be used."""
    folder = path.parent
    remedy = f"{path} {reason}; remove {folder}, and the next run will prepare it again"
    return SettingError("data.init_args.cache_dir", folder.parent, remedy)


def write_about(folder: Path, about: dict[str, object]) -> None:
    """Write `about.json` with the given entries and the digests of the folder's files."""
    digests = {path.name: file_sha256(path) for path in sorted(folder.iterdir()) if path.name != "about.json"}
    (folder / "about.json").write_text(json_with_digest({**about, "sha256": digests}), encoding="utf-8")


def read_about(folder: Path) -> About:
    """Read `about.json`.

    Raises:
        SettingError: If it is missing or damaged.
    """
    path = folder / "about.json"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise unusable(path) from error
    if not isinstance(about, dict) or about.pop(KEY, None) != own_sha256(about):
        raise unusable(path)
    return cast(About, about)


def check_file(path: Path, about: About) -> None:
    """Compare a file with its digest in `about.json`. Each file is read only once per process.

    Raises:
        SettingError: If the file has changed or can't be read.
    """
    try:
        digest = file_sha256_once(path)
    except OSError as error:
        raise unusable(path) from error
    if digest != about["sha256"].get(path.name):
        raise unusable(path, "has changed since it was prepared: its SHA-256 differs from the one in about.json")


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest data type that can hold every token id."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


class TokenFile:
    """The tokens of a split as a memory map, and its documents.

    Raises:
        SettingError: If the file or its index is missing or damaged, or if their lengths differ.
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
        """The starts of the documents, in ascending order."""
        return [document.start for document in self.documents]

    def document_at(self, position: int) -> Document:
        """The document that contains a position of the stream, which may be that of its start token."""
        return self.documents[bisect_right(self.starts, position) - 1]

    def counts(self, vocab_size: int) -> np.ndarray:
        """Number of occurrences of each token, without the documents' start tokens: (vocab_size,)."""
        counts = np.zeros(vocab_size, dtype=np.int64)
        for first in range(0, len(self.tokens), 1 << 24):  # so that the file is never in memory as a whole
            counts += np.bincount(self.tokens[first : first + (1 << 24)], minlength=vocab_size)
        return counts - np.bincount(self.tokens[self.starts], minlength=vocab_size)

    def text_of(self, document: Document) -> np.ndarray:
        """The tokens of a document's text, without its start token."""
        return self.tokens[document.start + 1 : document.start + 1 + document.tokens]
