"""Encodes text into token files, once per machine and on all cores."""

import fcntl
import hashlib
import json
import os
import platform
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import BinaryIO, NoReturn

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from tqdm import tqdm

from datamodules.documents import Text, lines_of
from datamodules.encoding import Block, Encoded, encoded
from datamodules.token_files import token_dtype, write_about
from datamodules.tokenizers import Tokenizer
from llp.atomic_files import move_into_place
from llp.errors import SettingError
from llp.scoring.metric import Document


class Corpus(ABC):
    """A text in splits, and the tokenizer that encodes it. Each benchmark defines a subclass."""

    name: str
    splits: tuple[str, ...] = ("train", "validation", "test")
    tokenizer: Tokenizer
    processes: int | None = None
    """Number of processes that encode. If None, one per core."""

    @abstractmethod
    def source(self) -> dict[str, object]:
        """What identifies the text without reading it: names, sizes and dates of its files, or a revision on the Hub.

        Raises:
            SettingError: If a part of the text is missing.
        """

    @abstractmethod
    def texts(self, split: str) -> Iterator[Text]:
        """Yield the documents of a split, whose text is read on demand."""

    def splits_note(self) -> str | None:
        """One line about how the text was split, or None if the benchmark itself defines the splits."""
        return None

    def n_bytes(self, split: str) -> int | None:
        """Size of a split in bytes, for the progress bar, or None if it is not known."""
        return None

    def count_words(self, line: str) -> int:
        """Number of words in a line, as the benchmark counts them."""
        return len(line.split())

    def start_token(self) -> int:
        """The token at the start of each document. It is the context of the first token, and is never scored."""
        return self.tokenizer.start_token


def prepare(corpus: Corpus, folder: Path) -> None:
    """Encode a corpus into a folder, unless the folder exists.

    If several processes of a machine call this function, one of them encodes, and the others wait. The folder is
    written under a temporary name and renamed when it is complete. What a killed process left behind is removed.

    Raises:
        SettingError: If the text or the tokenizer can't be used, or the disk can't be written.
    """
    if folder.exists():
        return
    # One per machine, because locks don't hold across all shared file systems.
    unfinished = folder.with_name(f".{folder.name}.{platform.node()}.unfinished")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.parent):
            shutil.rmtree(unfinished, ignore_errors=True)
            if not folder.exists():
                unfinished.mkdir()
                _make(corpus, unfinished)
                if not folder.exists():  # another machine may have written it meanwhile
                    move_into_place(unfinished, folder)
    except OSError as error:
        remedy = f"can't be written ({error.strerror or error}); no incomplete files were left there"
        raise SettingError("data.init_args.cache_dir", folder.parent, remedy) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # released when the process ends, even if it is killed
        yield
    finally:
        os.close(descriptor)


def _make(corpus: Corpus, folder: Path) -> None:
    note = corpus.splits_note()
    if note is not None:
        rank_zero_info(f"{corpus.name}: {note}")
    _train_tokenizer(corpus, folder)
    digest = hashlib.sha256()
    for split in corpus.splits:
        for document in _encode(corpus, folder, split):
            digest.update(f"{split}\0{document.name}\0{document.sha256}\0".encode())
    about: dict[str, object] = {
        "data_fingerprint": digest.hexdigest(),
        "tokenizer_fingerprint": corpus.tokenizer.fingerprint,
        "tokenizer": corpus.tokenizer.made_with or corpus.tokenizer.settings(),
        "source": corpus.source(),
    }
    write_about(folder, about)


def _train_tokenizer(corpus: Corpus, folder: Path) -> None:
    def lines() -> Iterator[str]:
        with _progress(corpus, "train", "reading for the tokenizer") as progress:
            for text in corpus.texts("train"):
                for block in text.checked_blocks():
                    yield from lines_of(block)
                    progress.update(len(block))

    corpus.tokenizer.train(lines())
    corpus.tokenizer.save(folder)


def _encode(corpus: Corpus, folder: Path, split: str) -> Iterator[Document]:
    """Write the tokens of a split and the index of its documents, and yield each document once it is written."""
    start, is_empty = 0, True
    with (
        (folder / f"{split}.bin").open("wb") as tokens,
        (folder / f"{split}.jsonl").open("w", encoding="utf-8") as index,
        _progress(corpus, split, f"encoding {split}") as progress,
        closing(encoded(corpus, corpus.texts(split), corpus.processes)) as blocks,
    ):
        for _, parts in groupby(blocks, key=lambda part: part[0].document):
            document = _write_document(corpus, parts, start, tokens, progress)
            index.write(json.dumps(asdict(document)) + "\n")
            yield document
            start, is_empty = start + 1 + document.tokens, is_empty and document.tokens == 0
    if is_empty:
        raise SettingError("data", corpus.name, f"its {split} split contains no text; add some")


def _write_document(
    corpus: Corpus, parts: Iterator[tuple[Block, Encoded]], start: int, stream: BinaryIO, progress: "tqdm[NoReturn]"
) -> Document:
    """Append a document to a file of tokens, in which it begins at position `start`."""
    first = np.array([corpus.start_token()], dtype=token_dtype(corpus.tokenizer.vocab_size)).tobytes()
    of_text, of_tokens = hashlib.sha256(), hashlib.sha256(first)
    stream.write(first)
    n_tokens = words = plain_words = n_bytes = 0
    for block, part in parts:
        data = part.tokens.tobytes()
        stream.write(data)
        of_text.update(block.data)
        of_tokens.update(data)
        n_tokens, words, plain_words = n_tokens + len(part.tokens), words + part.words, plain_words + part.plain_words
        n_bytes += len(block.data)
        progress.update(len(block.data))
    # The name of a file need not be UTF-8.
    name = block.name.encode(errors="surrogateescape").decode(errors="backslashreplace")
    digests = of_text.hexdigest(), of_tokens.hexdigest()
    return Document(name, start, n_tokens, words, plain_words, n_bytes, *digests)


def _progress(corpus: Corpus, split: str, what: str) -> "tqdm[NoReturn]":
    n_bytes = corpus.n_bytes(split)
    name = f"{corpus.name}: {what}"
    return tqdm(desc=name, total=n_bytes, unit="B", unit_scale=True, mininterval=1, disable=None)  # no bar in a log
