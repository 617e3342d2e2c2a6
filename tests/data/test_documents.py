"""Text in blocks of whole lines, and token files that a kill can't spoil."""

import json
import os
from fractions import Fraction
from math import floor

import numpy as np
import pytest

from datamodules import Bytes, TextFiles
from datamodules.documents import Text, describe_file
from datamodules.token_files import TokenFile, TokenWriter
from llp.errors import SettingError


def test_lines_keep_their_ends_and_lose_nothing():
    text = Text("name", [b"one\ntwo\n", b"\n", "thrée\r\nrest".encode(), b"\n"])
    assert [*text.lines()] == [["one\n", "two\n"], ["\n"], ["thrée\r\n", "rest"], ["\n"]]
    assert [*Text("name", []).lines()] == []
    odd = "a\x0bb\x0cc\x1cd\x85e\u2028f\u2029g\n"  # ends of lines to `splitlines`, and to nobody else
    assert [*Text("name", [odd.encode()]).lines()] == [[odd]]


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
