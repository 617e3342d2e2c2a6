"""Encodes text as tokens in several processes. The tokens don't depend on the number of processes."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import chain, islice
from typing import NamedTuple, Protocol

import numpy as np

from datamodules.documents import Text, lines_of
from datamodules.token_files import token_dtype
from datamodules.tokenizers import Tokenizer
from llp.errors import SettingError

_TASK = 1 << 18
"""Bytes of text that a process encodes at a time."""
_FEW = 8
"""With fewer tasks, starting processes takes longer than encoding."""


class Encoder(Protocol):
    """The part of a corpus that encoding needs."""

    tokenizer: Tokenizer

    def count_words(self, line: str) -> int: ...


class Block(NamedTuple):
    """A part of a document. The first block of each document is empty."""

    document: int
    """The number of the document."""
    name: str
    data: bytes


class Encoded(NamedTuple):
    """The tokens of a block, (N,), and its number of words, counted as the benchmark does and by whitespace."""

    tokens: np.ndarray
    words: int
    plain_words: int


def encoded(encoder: Encoder, texts: Iterable[Text], processes: int | None) -> Generator[tuple[Block, Encoded]]:
    """Yield the blocks of all documents in order, each with its encoding.

    At most five tasks per process are in memory.

    Args:
        encoder: The corpus.
        texts: The documents.
        processes: Number of processes. If None, one per core.

    Raises:
        SettingError: If a text is not UTF-8, if the tokenizer does not return it exactly, or if a process is killed.
    """
    processes = processes or n_cores()
    tasks = _tasks(texts)
    first = [*islice(tasks, _FEW)]
    is_few, tasks = len(first) < _FEW, chain(first, tasks)
    if processes == 1 or is_few:
        for task in tasks:
            yield from zip(task, _encode(encoder, [block.data for block in task]), strict=True)
        return
    pending: deque[tuple[list[Block], Future[list[Encoded]]]] = deque()
    with _pool(encoder, processes) as pool:
        for task in tasks:
            pending.append((task, pool.submit(_encode_here, [block.data for block in task])))
            if len(pending) > 4 * processes:  # enough to keep all processes busy
                done, future = pending.popleft()
                yield from zip(done, future.result(), strict=True)
        for done, future in pending:
            yield from zip(done, future.result(), strict=True)


def n_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _tasks(texts: Iterable[Text]) -> Iterator[list[Block]]:
    task: list[Block] = []
    size = 0
    for number, text in enumerate(texts):
        task.append(Block(number, text.name, b""))
        for data in text.checked_blocks():
            task.append(Block(number, text.name, data))
            size += len(data)
            if size >= _TASK:
                yield task
                task, size = [], 0
    if task:
        yield task


def _encode(encoder: Encoder, parts: list[bytes]) -> list[Encoded]:
    dtype = token_dtype(encoder.tokenizer.vocab_size)
    results = []
    for lines in map(lines_of, parts):
        words = sum(map(encoder.count_words, lines)), sum(len(line.split()) for line in lines)
        results.append(Encoded(encoder.tokenizer.encode(lines).astype(dtype), *words))
    return results


# The processes

_encoder: Encoder


@contextmanager
def _pool(encoder: Encoder, processes: int) -> Iterator[ProcessPoolExecutor]:
    """A pool of processes that hold the encoder. They are forked, because a user's own class may not be importable."""
    context = multiprocessing.get_context("fork")
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])  # until the processes ignore it
    try:
        pool = ProcessPoolExecutor(processes, context, _start, (encoder,))
        pool.submit(int)  # starts the processes
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    try:
        yield pool
    except BrokenProcessPool as error:
        remedy = "one of them was killed, most likely because memory ran out; set it lower"
        raise SettingError("data.init_args.processes", processes, remedy) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start(encoder: Encoder) -> None:
    """Set up a new process for encoding. It leaves Ctrl-C to its parent, and ends when its parent is gone."""
    global _encoder
    _encoder = encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _encode_here(parts: list[bytes]) -> list[Encoded]:
    return _encode(_encoder, parts)
