"""Encoding in several processes: the same bytes as in one, and what happens when something stops it."""

import itertools
import multiprocessing
import os
import signal
from contextlib import closing

import pytest

from datamodules import Bytes, SentencePiece
from datamodules.documents import Text
from datamodules.encoding import encoded
from helpers.corpus import DOCUMENTS, Given
from helpers.prepared import files
from helpers.signal_handlers import handlers_restored
from llp.errors import SettingError

LINES = [f"line {number} of é text, {number % 7} and {number % 11}\n" for number in range(2000)]
TEXTS = {
    **DOCUMENTS,
    "train": {"long": "".join(LINES), "empty": "", "short": "a", "more": "".join(LINES[:300])},
    "validation": {f"{number}": line for number, line in enumerate(LINES)},
}


@pytest.fixture(autouse=True)
def small_tasks(monkeypatch):
    """Tasks so small that a short text is enough of them."""
    monkeypatch.setattr("datamodules.encoding._TASK", 1000)
    monkeypatch.setattr("datamodules.documents._BLOCK", 700)
    yield
    assert multiprocessing.active_children() == []  # whatever happened


@pytest.mark.parametrize("tokenizer", [Bytes, lambda: SentencePiece(300)])
def test_any_number_of_processes_gives_the_same_bytes(tmp_path, tokenizer):
    prepared = []
    for processes in (1, 2, 3):
        data = Given(TEXTS, cache_dir=str(tmp_path / str(processes)), tokenizer=tokenizer(), processes=processes)
        data.prepare_data()
        prepared.append(files(tmp_path / str(processes)))
    assert prepared[0] == prepared[1] == prepared[2]
    data.setup("fit")
    assert [document.bytes for document in data.files["train"].documents] == [
        len(text.encode()) for text in TEXTS["train"].values()
    ]


class Encoder:
    """What `encoded` needs of a corpus; `act` is called for each line, where it is encoded."""

    tokenizer = Bytes()

    def __init__(self, act):
        self.act = act

    def count_words(self, line):
        return self.act() or 0


def many_texts():
    return (Text(f"{number}", [b"a line\n" * 50]) for number in itertools.count())


def test_blocks_are_encoded_elsewhere_in_order_and_not_read_far_ahead():
    read = itertools.count()
    texts = (text for text in many_texts() if next(read) >= 0)
    both, waited = multiprocessing.Barrier(2), []

    def own_pid():
        if not waited:  # until the other process has work, too
            waited.append(both.wait(60))
        return os.getpid()

    with closing(encoded(Encoder(own_pid), texts, 2)) as results:
        first = [*itertools.islice(results, 200)]
    assert [block.document for block, _ in first] == [number for number in range(100) for _ in range(2)]
    pids = {part.words // 50 for block, part in first if block.data}
    assert os.getpid() not in pids
    assert len(pids) == 2
    assert next(read) < 200


def test_ctrl_c_is_left_to_the_process_that_started_the_others():
    encoder = Encoder(lambda: os.kill(os.getpid(), signal.SIGINT))
    with closing(encoded(encoder, many_texts(), 2)) as results:
        assert len([*itertools.islice(results, 50)]) == 50


def test_ctrl_c_ends_them_and_leaves_nothing(tmp_path):
    class Interrupted(Given):
        def texts(self, split):
            yield from itertools.islice(many_texts(), 500)
            signal.raise_signal(signal.SIGINT)

    corpus = Interrupted(DOCUMENTS, cache_dir=str(tmp_path), processes=2)
    with handlers_restored():
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background processes ignore it
        with pytest.raises(KeyboardInterrupt):
            corpus.prepare_data()
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (
            lambda: os.kill(os.getpid(), signal.SIGKILL),
            "data.init_args.processes = 2: one of them was killed, .* lower",
        ),
        (lambda: (_ for _ in ()).throw(SettingError("a", 1, "from there")), "a = 1: from there"),
    ],
)
def test_what_goes_wrong_in_a_process_is_one_message(act, message):
    with pytest.raises(SettingError, match=message):
        [*itertools.islice(encoded(Encoder(act), many_texts(), 2), 50)]


def test_processes_are_at_least_one(tmp_path):
    with pytest.raises(SettingError, match=r"data\.init_args\.processes = 0: set it to 1 or more"):
        Given(DOCUMENTS, cache_dir=str(tmp_path), processes=0)
