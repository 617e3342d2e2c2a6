"""From text to token files: once per machine, on all cores, and after a kill on from where it was."""

import fcntl
import hashlib
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from tqdm import tqdm

from datamodules.documents import Text
from datamodules.prepared_folder import write_about
from datamodules.token_files import Document, TokenWriter
from datamodules.tokenizers import Tokenizer
from llp.atomic_files import move_into_place
from llp.errors import SettingError

Argument = TypeVar("Argument")
Result = TypeVar("Result")


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest type that holds every token."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


class Corpus(Protocol):
    """What is prepared: a benchmark's text, its tokenizer and how its words are counted (see `TextDataModule`)."""

    name: str
    splits: tuple[str, ...]
    tokenizer: Tokenizer

    def source(self) -> dict[str, Any]: ...
    def splits_note(self) -> str | None: ...
    def texts(self, split: str) -> Iterator[Text]: ...
    def n_bytes(self, split: str) -> int | None: ...
    def count_words(self, line: str) -> int: ...
    def start_token(self) -> int: ...


class Preparation:
    """Encodes a corpus into a folder, which appears whole or not at all.

    Documents that are done stay done when the work is stopped: the unfinished folder has a name of its own, and the
    next start goes on after the last whole document.
    """

    def __init__(self, corpus: Corpus) -> None:
        self.corpus, self.tokenizer = corpus, corpus.tokenizer

    def run(self, folder: Path) -> None:
        """Make the folder, unless it is there; of several processes that want it one makes it.

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
                fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be at it: wait; one that dies lets go
                if unfinished.exists() and os.path.samestat(os.fstat(lock), unfinished.stat()):
                    self._make(unfinished)
                    move_into_place(unfinished, folder)
            except Exception as error:
                shutil.rmtree(unfinished, ignore_errors=True)
                if isinstance(error, OSError):
                    remedy = f"preparing the text failed ({error.strerror or error}); nothing was left there"
                    raise SettingError("data.init_args.cache_dir", folder.parent, remedy) from error
                raise
            finally:
                os.close(lock)

    def _make(self, folder: Path) -> None:
        for leftover in folder.glob(".*"):  # of a process that was killed while it wrote the tokenizer
            leftover.unlink()
        note = self.corpus.splits_note()
        if note is not None:
            rank_zero_info(f"{self.corpus.name}: {note}")
        self._train(folder)
        digest = hashlib.sha256()
        for split in self.corpus.splits:
            for document in self._encode(folder, split):
                digest.update(f"{split}\0{document.name}\0{document.sha256}\0".encode())
        about = {
            "data_fingerprint": digest.hexdigest(),
            "tokenizer_fingerprint": self.tokenizer.fingerprint,
            "tokenizer": self.tokenizer.made_with or self.tokenizer.settings(),
            "source": self.corpus.source(),
        }
        write_about(folder, about)

    def _train(self, folder: Path) -> None:
        if not self.tokenizer.is_trained(folder):
            with self._progress("train", "reading for the tokenizer") as progress:

                def lines() -> Iterator[str]:
                    for text in self.corpus.texts("train"):
                        for block in text.lines():
                            yield from block
                            progress.update(sum(len(line.encode()) for line in block))

                self.tokenizer.train(lines(), folder)
        self.tokenizer.load(folder)

    def _encode(self, folder: Path, split: str) -> list[Document]:
        writer = TokenWriter(folder, split, token_dtype(self.tokenizer.vocab_size))
        done = len(writer.documents)
        with self._progress(split, f"encoding {split}") as progress:
            progress.update(sum(document.bytes for document in writer.documents))
            for number, text in enumerate(self.corpus.texts(split)):
                if number >= done:
                    self._encode_document(writer, text, progress)
        writer.close()
        if not any(document.tokens for document in writer.documents):
            raise SettingError("data", self.corpus.name, f"its {split} split holds no text; give one that does")
        return writer.documents

    def _encode_document(self, writer: TokenWriter, text: Text, progress: "tqdm[Any]") -> None:
        digest = hashlib.sha256()
        words = plain_words = n_bytes = 0
        writer.write(np.array([self.corpus.start_token()]))

        def encode(lines: list[str]) -> tuple[np.ndarray, int, int, bytes]:
            encoded = self.tokenizer.encode(lines)
            plain = sum(len(line.split()) for line in lines)
            return encoded, sum(map(self.corpus.count_words, lines)), plain, "".join(lines).encode()

        for encoded, n_words, n_plain, data in in_order(encode, text.lines()):
            writer.write(encoded)
            digest.update(data)
            words, plain_words, n_bytes = words + n_words, plain_words + n_plain, n_bytes + len(data)
            progress.update(len(data))
        writer.finish(text.name, words, plain_words, n_bytes, digest.hexdigest())

    def _progress(self, split: str, what: str) -> "tqdm[Any]":
        n_bytes = self.corpus.n_bytes(split)
        return tqdm(desc=f"{self.corpus.name}: {what}", total=n_bytes, unit="B", unit_scale=True, mininterval=1)


def in_order(function: Callable[[Argument], Result], arguments: Iterable[Argument]) -> Iterator[Result]:
    """`map` on all cores with a bounded number of results in flight. SentencePiece encodes without Python's lock."""
    n_workers = os.cpu_count() or 1
    pending: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(n_workers) as pool:
        for argument in arguments:
            pending.append(pool.submit(function, argument))
            if len(pending) > 2 * n_workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
