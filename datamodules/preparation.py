"""From text to token files, once per machine and on all cores; a killed preparation resumes after its last document."""

import fcntl
import hashlib
import os
import shutil
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from tqdm import tqdm

from datamodules.documents import Text
from datamodules.token_files import Document, TokenWriter, token_dtype, write_about
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
    """Encode a corpus into a folder unless it exists; one of several processes does it, and the others wait.

    The folder appears whole or not at all. Until then it has another name.

    Raises:
        SettingError: If the text or the tokenizer can't be used, or the disk can't be written.
    """
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    while not folder.exists():
        try:
            unfinished.mkdir(parents=True, exist_ok=True)
            lock = os.open(unfinished, os.O_RDONLY)
        except OSError as error:
            remedy = f"can't be written ({error.strerror}); name another folder"
            raise SettingError("data.init_args.cache_dir", folder.parent, remedy) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)  # waits for another process at work; the lock of a dead one is free
            if unfinished.exists() and os.path.samestat(os.fstat(lock), unfinished.stat()):
                _make(corpus, unfinished)
                move_into_place(unfinished, folder)
        except Exception as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            if isinstance(error, OSError):
                remedy = f"preparing the text failed ({error.strerror or error}); nothing was left there"
                raise SettingError("data.init_args.cache_dir", folder.parent, remedy) from error
            raise
        finally:
            os.close(lock)


def _make(corpus: Corpus, folder: Path) -> None:
    for leftover in folder.glob(".*"):  # of a process that was killed while it wrote the tokenizer
        leftover.unlink()
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
    if not corpus.tokenizer.is_trained(folder):
        with _progress(corpus, "train", "reading for the tokenizer") as progress:

            def lines() -> Iterator[str]:
                for text in corpus.texts("train"):
                    for block in text.lines():
                        yield from block
                        progress.update(sum(len(line.encode()) for line in block))

            corpus.tokenizer.train(lines(), folder)
    corpus.tokenizer.load(folder)


def _encode(corpus: Corpus, folder: Path, split: str) -> list[Document]:
    writer = TokenWriter(folder, split, token_dtype(corpus.tokenizer.vocab_size))
    done = len(writer.documents)
    with _progress(corpus, split, f"encoding {split}") as progress:
        progress.update(sum(document.bytes for document in writer.documents))
        for number, text in enumerate(corpus.texts(split)):
            if number >= done:
                _encode_document(corpus, writer, text, progress)
    writer.close()
    if not any(document.tokens for document in writer.documents):
        raise SettingError("data", corpus.name, f"its {split} split holds no text; give one that does")
    return writer.documents


def _encode_document(corpus: Corpus, writer: TokenWriter, text: Text, progress: "tqdm[Any]") -> None:
    digest = hashlib.sha256()
    words = plain_words = n_bytes = 0
    writer.write(np.array([corpus.start_token()]))

    def encode(lines: list[str]) -> tuple[np.ndarray, int, int, bytes]:
        n_plain = sum(len(line.split()) for line in lines)
        return corpus.tokenizer.encode(lines), sum(map(corpus.count_words, lines)), n_plain, "".join(lines).encode()

    for tokens, n_words, n_plain, data in in_order(encode, text.lines()):
        writer.write(tokens)
        digest.update(data)
        words, plain_words, n_bytes = words + n_words, plain_words + n_plain, n_bytes + len(data)
        progress.update(len(data))
    writer.finish(text.name, words, plain_words, n_bytes, digest.hexdigest())


def _progress(corpus: Corpus, split: str, what: str) -> "tqdm[Any]":
    n_bytes = corpus.n_bytes(split)
    name = f"{corpus.name}: {what}"
    return tqdm(desc=name, total=n_bytes, unit="B", unit_scale=True, mininterval=1, disable=None)  # no bar in a log


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
