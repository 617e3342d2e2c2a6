"""From text to token files, once per machine and on all cores."""

import fcntl
import hashlib
import json
import os
import platform
import shutil
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from tqdm import tqdm

from datamodules.documents import Text
from datamodules.token_files import Document, token_dtype, write_about
from datamodules.tokenizers import Tokenizer
from llp.atomic_files import move_into_place
from llp.errors import SettingError

Argument = TypeVar("Argument")
Result = TypeVar("Result")


class Corpus(ABC):
    """A text in splits and the tokenizer that encodes it; what a benchmark defines."""

    name: str
    splits: tuple[str, ...] = ("train", "validation", "test")
    tokenizer: Tokenizer

    @abstractmethod
    def source(self) -> dict[str, Any]:
        """What identifies the text without reading it: names, sizes and dates of files, or a revision on the Hub.

        Raises:
            SettingError: If a part of the text is missing.
        """

    @abstractmethod
    def texts(self, split: str) -> Iterator[Text]:
        """The documents of a split, read when they are iterated over."""

    def splits_note(self) -> str | None:
        """What became which split, in one line, where the benchmark itself doesn't say."""
        return None

    def n_bytes(self, split: str) -> int | None:
        """Size of a split for the progress bar, if it is known."""
        return None

    def count_words(self, line: str) -> int:
        """Number of words of a line, as the benchmark counts them."""
        return len(line.split())

    def start_token(self) -> int:
        """The token that a document begins with: context for its first token, never scored."""
        return self.tokenizer.start_token


def prepare(corpus: Corpus, folder: Path) -> None:
    """Encode a corpus into a folder unless it exists. Of several processes on a machine one does it; the others wait.

    The folder appears whole or not at all. Until then it has another name; what a killed process left is removed.

    Raises:
        SettingError: If the text or the tokenizer can't be used, or the disk can't be written.
    """
    if folder.exists():
        return
    # Each machine has its own: locks don't hold across all shared file systems.
    unfinished = folder.with_name(f".{folder.name}.{platform.node()}.unfinished")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.parent):
            shutil.rmtree(unfinished, ignore_errors=True)
            if not folder.exists():
                unfinished.mkdir()
                _make(corpus, unfinished)
                if not folder.exists():  # of another machine, meanwhile
                    move_into_place(unfinished, folder)
    except OSError as error:
        remedy = f"can't be written ({error.strerror or error}); nothing was left there"
        raise SettingError("data.init_args.cache_dir", folder.parent, remedy) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # the lock of a dead process is free
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
    about = {
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
                for block in text.lines():
                    yield from block
                    progress.update(sum(len(line.encode()) for line in block))

    corpus.tokenizer.train(lines())
    corpus.tokenizer.save(folder)


def _encode(corpus: Corpus, folder: Path, split: str) -> Iterator[Document]:
    """Write the tokens of a split and the index of its documents; yields each document when it is written."""
    start, is_empty = 0, True
    with (
        (folder / f"{split}.bin").open("wb") as tokens,
        (folder / f"{split}.jsonl").open("w", encoding="utf-8") as index,
        _progress(corpus, split, f"encoding {split}") as progress,
    ):
        for text in corpus.texts(split):
            document = _encode_document(corpus, text, start, tokens, progress)
            index.write(json.dumps(asdict(document)) + "\n")
            yield document
            start, is_empty = start + 1 + document.tokens, is_empty and document.tokens == 0
    if is_empty:
        raise SettingError("data", corpus.name, f"its {split} split holds no text; give one that does")


def _encode_document(corpus: Corpus, text: Text, start: int, stream: BinaryIO, progress: "tqdm[Any]") -> Document:
    """Append a document's tokens to a file, in which it begins at token `start`."""
    dtype = token_dtype(corpus.tokenizer.vocab_size)
    of_text, of_tokens = hashlib.sha256(), hashlib.sha256()
    n_tokens = words = plain_words = n_bytes = 0

    def write(tokens: np.ndarray) -> None:
        data = tokens.astype(dtype).tobytes()
        stream.write(data)
        of_tokens.update(data)

    def encode(lines: list[str]) -> tuple[np.ndarray, int, int, bytes]:
        n_plain = sum(len(line.split()) for line in lines)
        return corpus.tokenizer.encode(lines), sum(map(corpus.count_words, lines)), n_plain, "".join(lines).encode()

    write(np.array([corpus.start_token()]))
    for tokens, n_words, n_plain, data in in_order(encode, text.lines()):
        write(tokens)
        of_text.update(data)
        n_tokens, words, plain_words = n_tokens + len(tokens), words + n_words, plain_words + n_plain
        n_bytes += len(data)
        progress.update(len(data))
    digests = of_text.hexdigest(), of_tokens.hexdigest()
    return Document(text.name, start, n_tokens, words, plain_words, n_bytes, *digests)


def _progress(corpus: Corpus, split: str, what: str) -> "tqdm[Any]":
    n_bytes = corpus.n_bytes(split)
    return tqdm(desc=f"{corpus.name}: {what}", total=n_bytes, unit="B", unit_scale=True, mininterval=1)


def in_order(function: Callable[[Argument], Result], arguments: Iterable[Argument]) -> Iterator[Result]:
    """`map` on all cores with a bounded number of pending results. SentencePiece encodes without Python's lock."""
    n_workers = os.cpu_count() or 1
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(n_workers) as pool:
        for argument in arguments:
            pending.append(pool.submit(function, argument))
            if len(pending) > 2 * n_workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
