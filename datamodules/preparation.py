"""From text to token files: once a machine, on all cores, taken up again after a kill."""

import fcntl
import hashlib
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from tqdm import tqdm

from datamodules.documents import Text
from datamodules.token_files import Document, TokenWriter
from datamodules.tokenizers import Tokenizer
from llp.errors import SettingError

Argument = TypeVar("Argument")
Result = TypeVar("Result")


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest type that holds every token."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


class Preparation:
    """Encodes a benchmark's splits into a folder, which appears whole or not at all.

    Documents that are done stay done when the work is stopped: the unfinished folder has a name of its own, and the
    next start goes on behind the last whole document.

    Args:
        name: Of the benchmark, for the progress bar.
        tokenizer: Trained here on the training split.
        start_token: Of a document, asked for when the tokenizer is trained.
        count_words: The benchmark's words in a line.
    """

    def __init__(
        self,
        name: str,
        tokenizer: Tokenizer,
        start_token: Callable[[], int],
        count_words: Callable[[str], int],
    ) -> None:
        self.name, self.tokenizer, self.start_token, self.count_words = name, tokenizer, start_token, count_words

    def run(
        self,
        folder: Path,
        splits: Iterable[str],
        texts: Callable[[str], Iterator[Text]],
        n_bytes: Callable[[str], int | None],
        source: dict[str, Any],
    ) -> None:
        """Make the folder.

        Args:
            folder: To be made.
            splits: Names; the tokenizer is trained on `train`.
            texts: The documents of a split, read when they are iterated over.
            n_bytes: Size of a split, if it is known.
            source: What identifies the text, for the record.

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
                    self._make(unfinished, splits, texts, n_bytes, source)
                    os.replace(unfinished, folder)
            except Exception as error:
                shutil.rmtree(unfinished, ignore_errors=True)
                if isinstance(error, OSError):
                    remedy = f"preparing the text failed ({error.strerror or error}); nothing was left there"
                    raise SettingError("data.init_args.cache_dir", folder.parent, remedy) from error
                raise
            finally:
                os.close(lock)

    def _make(
        self,
        folder: Path,
        splits: Iterable[str],
        texts: Callable[[str], Iterator[Text]],
        n_bytes: Callable[[str], int | None],
        source: dict[str, Any],
    ) -> None:
        self._train(folder, texts("train"), n_bytes("train"))
        digest = hashlib.sha256()
        for split in splits:
            for document in self._encode(folder, split, texts(split), n_bytes(split)):
                digest.update(f"{split}\0{document.name}\0{document.sha256}\0".encode())
        about = {
            "data_fingerprint": digest.hexdigest(),
            "tokenizer_fingerprint": self.tokenizer.fingerprint,
            "tokenizer": self.tokenizer.settings(),
            "source": source,
        }
        (folder / "about.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")

    def _train(self, folder: Path, texts: Iterator[Text], n_bytes: int | None) -> None:
        if not self.tokenizer.is_trained(folder):
            with self._progress("reading for the tokenizer", n_bytes) as progress:

                def lines() -> Iterator[str]:
                    for text in texts:
                        for block in text.lines():
                            yield from block
                            progress.update(sum(len(line.encode()) for line in block))

                self.tokenizer.train(lines(), folder)
        self.tokenizer.load(folder)

    def _encode(self, folder: Path, split: str, texts: Iterator[Text], n_bytes: int | None) -> list[Document]:
        writer = TokenWriter(folder, split, token_dtype(self.tokenizer.vocab_size))
        done = len(writer.documents)
        with self._progress(f"encoding {split}", n_bytes) as progress:
            progress.update(sum(document.bytes for document in writer.documents))
            for number, text in enumerate(texts):
                if number >= done:
                    writer.finish(self._encode_document(writer, text, progress))
        writer.close()
        if not any(document.tokens for document in writer.documents):
            raise SettingError("data", self.name, f"its {split} split holds no text; give one that does")
        return writer.documents

    def _encode_document(self, writer: TokenWriter, text: Text, progress: "tqdm[Any]") -> Document:
        digest = hashlib.sha256()
        tokens = words = plain_words = n_bytes = 0
        writer.write(np.array([self.start_token()]))

        def encode(lines: list[str]) -> tuple[np.ndarray, int, int, bytes]:
            encoded = self.tokenizer.encode(lines)
            plain = sum(len(line.split()) for line in lines)
            return encoded, sum(map(self.count_words, lines)), plain, "".join(lines).encode()

        for encoded, n_words, n_plain, data in in_order(encode, text.lines()):
            writer.write(encoded)
            digest.update(data)
            tokens, words, plain_words = tokens + len(encoded), words + n_words, plain_words + n_plain
            n_bytes += len(data)
            progress.update(len(data))
        return Document(text.name, writer.length, tokens, words, plain_words, n_bytes, digest.hexdigest())

    def _progress(self, what: str, n_bytes: int | None) -> "tqdm[Any]":
        return tqdm(desc=f"{self.name}: {what}", total=n_bytes, unit="B", unit_scale=True, mininterval=1)


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
