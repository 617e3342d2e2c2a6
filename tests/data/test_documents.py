"""Text in blocks of whole lines, and token files that a kill can't spoil."""

import json
import os
from fractions import Fraction
from itertools import chain
from math import floor

import numpy as np
import pytest

from datamodules import Bytes, TextFiles
from datamodules.documents import Text, blocks_of, describe_file, read_text
from datamodules.token_files import TokenFile, TokenWriter
from llp.errors import SettingError


def test_lines_keep_their_ends_and_lose_nothing():
    text = Text("name", [b"one\ntwo\n", b"\n", "thrée\r\nrest".encode(), b"\n"])
    assert [*text.lines()] == [["one\n", "two\n"], ["\n"], ["thrée\r\n", "rest"], ["\n"]]
    assert [*Text("name", []).lines()] == []
    odd = "a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g\n"  # ends of lines to `splitlines`, and to nobody else
    assert [*Text("name", [odd.encode()]).lines()] == [[odd]]


def test_the_offset_of_a_broken_byte_counts_bytes():
    text = Text("name", ["é é\n".encode(), "é".encode() + b"\xff\n"])
    lines = text.lines()
    next(lines)
    with pytest.raises(SettingError, match="name is not UTF-8 at byte 8"):  # 6 of the first block, 2 of the second
        next(lines)


def test_a_file_is_read_in_blocks_of_whole_lines(tmp_path, monkeypatch):
    monkeypatch.setattr("datamodules.documents._BLOCK", 6)
    content = b"one\ntwo\nthree\n\nfour five six\nend"
    path = tmp_path / "text"
    path.write_bytes(content)
    text = read_text(path, "name")
    blocks = [*text.blocks]
    assert blocks == [b"one\ntwo\n", b"three\n\n", b"four five six\n", b"end"]
    assert (text.name, text.file) == ("name", path)


def test_lines_are_gathered_into_blocks(monkeypatch):
    monkeypatch.setattr("datamodules.documents._BLOCK", 6)
    lines = ["one\n", "two\n", "é\n", "four five six\n", "a\n", "b\n", "c\n", "d\n"]
    expected = ["one\ntwo\n", "é\nfour five six\n", "a\nb\nc\n", "d\n"]
    assert [block.decode() for block in blocks_of(lines)] == expected
    assert [*blocks_of([])] == []


def test_what_tells_a_file_from_another(tmp_path):
    """Its place, its size and its date: where one of them is another, the text is prepared anew."""
    path = tmp_path / "a.txt"
    path.write_text("four")
    os.utime(path, ns=(7, 123456789))
    plain = describe_file(path, "train")
    assert plain == {"file": str(path), "bytes": 4, "modified": 123456789}
    path.write_text("five!")
    os.utime(path, ns=(7, 123456789))
    assert describe_file(path, "train") == {**plain, "bytes": 5}
    (tmp_path / "link.txt").symlink_to("a.txt")
    assert describe_file(tmp_path / "link.txt", "train") == describe_file(path, "train")


# Token files

DTYPE = np.dtype(np.uint16)


def write(writer, name, tokens):
    writer.write(np.array([256]))
    writer.write(np.array(tokens))
    writer.finish(name, words=1, plain_words=1, n_bytes=len(tokens), sha256="0")


def test_a_finished_document_is_on_the_disk(tmp_path):
    """It is whole there before its line in the index is."""
    writer = TokenWriter(tmp_path, "train", DTYPE)
    for number, tokens in enumerate(([1, 2, 3], [], [4])):
        write(writer, f"é{number}", tokens)
        index = (tmp_path / "train.jsonl").read_text().splitlines()
        assert [json.loads(line)["name"] for line in index] == [f"é{n}" for n in range(number + 1)]
        assert (tmp_path / "train.bin").stat().st_size == 2 * writer.length
    writer.close()
    file = TokenFile(tmp_path, "train", DTYPE)
    assert file.tokens.tolist() == [256, 1, 2, 3, 256, 256, 4]
    assert file.documents == writer.documents
    assert file.counts(257).dtype == np.int64
    assert file.counts(257).tolist() == [0, 1, 1, 1, 1, *[0] * 252]


@pytest.mark.parametrize("cut", ["nothing", "amid a document", "amid a line", "before the line's end"])
def test_writing_goes_on_behind_the_last_whole_document(tmp_path, cut):
    writer = TokenWriter(tmp_path, "train", DTYPE)
    write(writer, "one é", [1, 2, 3])
    write(writer, "two", [4, 5])
    if cut == "amid a document":
        writer.write(np.array([256, 9, 9]))
    writer.close()
    index = tmp_path / "train.jsonl"
    if cut == "amid a line":
        index.write_bytes(index.read_bytes()[:-20])
    elif cut == "before the line's end":
        index.write_bytes(index.read_bytes()[:-1])
    kept = 2 if cut in ("nothing", "amid a document") else 1
    writer = TokenWriter(tmp_path, "train", DTYPE)
    assert [document.name for document in writer.documents] == ["one é", "two"][:kept]
    assert writer.length == (7 if kept == 2 else 4)
    write(writer, "three", [6])
    writer.close()
    file = TokenFile(tmp_path, "train", DTYPE)
    assert [document.name for document in file.documents] == [*["one é", "two"][:kept], "three"]
    assert file.tokens.tolist() == [256, 1, 2, 3, *([256, 4, 5] if kept == 2 else []), 256, 6]


def test_a_token_may_come_more_than_two_billion_times(tmp_path, monkeypatch):
    writer = TokenWriter(tmp_path, "train", DTYPE)
    write(writer, "one", [1, 2])
    writer.close()
    file = TokenFile(tmp_path, "train", DTYPE)
    monkeypatch.setattr("datamodules.token_files.blocks", lambda tokens, size: range(3))  # as if they were
    monkeypatch.setattr(np, "bincount", lambda block, minlength: np.full(2, 2**30 if isinstance(block, int) else 1))
    assert file.counts(2).tolist() == [3 * 2**30 - 1] * 2


def test_an_empty_token_file_is_damaged(tmp_path):
    for name in ("train.jsonl", "train.bin"):
        (tmp_path / name).touch()
    with pytest.raises(SettingError, match="damaged or cut short"):
        TokenFile(tmp_path, "train", DTYPE)


# A folder of text


def text_files(folder, **settings):
    return TextFiles(str(folder), cache_dir=str(folder.parent / "cache"), tokenizer=Bytes(), window_len=2, **settings)


def names(data):
    return {split: [text.name for text in data.texts(split)] for split in data.splits}


@pytest.mark.parametrize(
    ("validation", "test", "n", "held_out"),
    [
        # A document is held out where n * share passes a whole number on the way to (n + 1) * share.
        (0.1, 0.1, 20, {"validation": [4, 14], "test": [9, 19]}),
        (0.25, 0.25, 8, {"validation": [1, 5], "test": [3, 7]}),
        (0.2, 0.1, 10, {"validation": [3, 6], "test": [9]}),
        (0.1, 0.2, 10, {"validation": [3], "test": [6, 9]}),
    ],
)
def test_documents_are_dealt_out_evenly(tmp_path, validation, test, n, held_out):
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"text": "x"}\n' * n)
    dealt = names(text_files(folder, validation_share=validation, test_share=test))
    numbers = {split: [int(name.split(":")[1]) - 1 for name in members] for split, members in dealt.items()}
    assert {split: numbers[split] for split in held_out} == held_out
    assert sorted(chain(*numbers.values())) == list(range(n))


@pytest.mark.parametrize(
    "shares", [("0.1", "0.05"), ("0.3", "0.1"), ("0.01", "0.09"), ("0.02", "0.08"), ("0.01", "0.04")]
)
def test_shares_are_those_of_exact_fractions(tmp_path, shares):
    """A hundredth and nine hundredths are a tenth, which in binary they aren't."""
    validation, test = map(Fraction, shares)
    held_out = [n for n in range(1000) if floor((n + 1) * (validation + test)) > floor(n * (validation + test))]
    part = test / (validation + test)
    tested = [n for number, n in enumerate(held_out) if floor((number + 1) * part) > floor(number * part)]
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"text": "x"}\n' * 1000)
    dealt = names(text_files(folder, validation_share=float(shares[0]), test_share=float(shares[1])))
    assert dealt["test"] == [f"a.jsonl:{n + 1}" for n in tested]
    assert dealt["validation"] == [f"a.jsonl:{n + 1}" for n in held_out if n not in tested]
    assert len(dealt["validation"]) == 1000 * validation
    assert len(dealt["test"]) == 1000 * test


def test_what_is_prepared_is_keyed_by_all_that_changes_the_text(tmp_path):
    folder = tmp_path / "text"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"text": "x", "body": "y"}\n' * 20)
    settings = [{}, {"text_key": "body"}, {"validation_share": 0.1}, {"test_share": 0.1}]
    assert len({text_files(folder, **changed).prepared_folder() for changed in settings}) == len(settings)


def test_tokens_of_a_large_file_are_all_counted(tmp_path):
    """It is read in pieces; the start tokens of documents are none of the text's."""
    n = (1 << 24) + 5
    tokens = np.zeros(n + 1 + 4, dtype=np.uint8)
    tokens[0] = tokens[n + 1] = 3  # two documents
    tokens[[1, 7, n, n + 2]] = 2
    tokens[n + 3 :] = 1
    tokens.tofile(tmp_path / "train.bin")
    about = {"words": 0, "plain_words": 0, "bytes": 0, "sha256": ""}
    documents = [{"name": "a", "start": 0, "tokens": n, **about}, {"name": "b", "start": n + 1, "tokens": 3, **about}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(document) + "\n" for document in documents))
    assert TokenFile(tmp_path, "train", np.dtype(np.uint8)).counts(6).tolist() == [n - 3, 2, 4, 0, 0, 0]
