"""From documents to a prepared folder, with texts written here: what the digest holds, and what the files say."""

import hashlib
import json
import os

import numpy as np
import pytest

from datamodules import SentencePiece
from datamodules.documents import Text, describe_file
from datamodules.tokenizers.sentence_piece import _sample
from helpers.corpus import DOCUMENTS, Given
from helpers.prepared import prepared
from llp.errors import SettingError


def fingerprint(documents, cache):
    return prepared(Given(documents, cache_dir=str(cache))).about["data_fingerprint"]


def renamed(members, old, new):
    return {new if name == old else name: text for name, text in members.items()}


CHANGES = {
    "a name": {**DOCUMENTS, "train": renamed(DOCUMENTS["train"], "b", "z")},
    "a byte": {**DOCUMENTS, "validation": {"c": "four five\n", "d": "sex\n"}},
    "the end of a text": {**DOCUMENTS, "test": {"e": "seven é\n\n"}},
    "the order": {**DOCUMENTS, "train": dict(reversed(DOCUMENTS["train"].items()))},
    "the split": {
        **DOCUMENTS,
        "train": {"a": "one two\n" * 9},
        "validation": {"b": "three\n", **DOCUMENTS["validation"]},
    },
    "where one ends": {**DOCUMENTS, "validation": {"c": "four ", "d": "five\nsix\n"}},
    "names exchanged": {**DOCUMENTS, "validation": {"d": "four five\n", "c": "six\n"}},
}


def test_the_digest_holds_every_name_split_and_byte(tmp_path):
    plain = fingerprint(DOCUMENTS, tmp_path / "plain")
    assert fingerprint(json.loads(json.dumps(DOCUMENTS)), tmp_path / "again") == plain
    digests = {change: fingerprint(documents, tmp_path / change) for change, documents in CHANGES.items()}
    assert len({plain, *digests.values()}) == 1 + len(CHANGES)


def test_the_digest_is_that_of_the_text_alone(tmp_path, monkeypatch):
    """Another tokenizer, other windows or blocks make other token files of the same text."""
    long = {**DOCUMENTS, "train": {"a": " ".join(f"word{i} of {i % 7}\n" for i in range(400))}}
    plain = fingerprint(long, tmp_path / "plain")
    settings = {"tokenizer": SentencePiece(300), "window_len": 9}
    data = prepared(Given(long, cache_dir=str(tmp_path / "plain"), **settings))
    assert data.about["data_fingerprint"] == plain
    assert data.about["tokenizer_fingerprint"] != "bytes"
    monkeypatch.setattr("datamodules.documents._BLOCK", 7)
    assert fingerprint(long, tmp_path / "small blocks") == plain


def test_what_is_written_of_a_document(tmp_path):
    """By hand: where it starts, its sizes, its hash and its tokens."""

    class Doubled(Given):
        def count_words(self, line):
            return 2 * len(line.split())

    documents = {**DOCUMENTS, "test": {"e": "seven é\neight\n", "f": "", "g": "nine"}}
    data = prepared(Doubled(documents, cache_dir=str(tmp_path)), "test")
    texts = ["seven é\neight\n".encode(), b"", b"nine"]
    assert data.files["test"].tokens.tolist() == [256, *texts[0], 256, 256, *texts[2]]
    assert data.files["test"].tokens.dtype == np.uint16
    e, f, g = data.files["test"].documents
    assert [document.name for document in (e, f, g)] == ["e", "f", "g"]
    assert [document.start for document in (e, f, g)] == [0, 16, 17]
    assert [document.tokens for document in (e, f, g)] == [15, 0, 4]
    assert [document.bytes for document in (e, f, g)] == [15, 0, 4]
    assert [document.plain_words for document in (e, f, g)] == [3, 0, 1]
    assert [document.words for document in (e, f, g)] == [6, 0, 2]
    assert [document.sha256 for document in (e, f, g)] == [hashlib.sha256(text).hexdigest() for text in texts]
    for document, text in zip((e, f, g), texts, strict=True):
        assert data.files["test"].text_of(document).tolist() == list(text)


def test_a_split_without_text_is_refused(tmp_path):
    with pytest.raises(SettingError, match="data = given: its test split contains no text"):
        prepared(Given({**DOCUMENTS, "test": {"e": "", "f": ""}}, cache_dir=str(tmp_path)))
    assert [*tmp_path.iterdir()] == []


# Lines for training a tokenizer


def test_every_sample_of_lines_is_as_likely_as_every_other():
    """Two of five lines: ten pairs, and 20,000 seeds draw each about 2,000 times (standard deviation 42)."""
    lines, n_seeds = ["a", "b", "c", "d", "e"], 20_000
    assert _sample(iter(lines), 5, 0) == _sample(iter(lines), 9, 1) == lines
    drawn = {}
    for seed in range(n_seeds):
        sample = tuple(sorted(_sample(iter(lines), 2, seed)))
        drawn[sample] = drawn.get(sample, 0) + 1
    assert len(drawn) == 10
    for sample, times in drawn.items():
        assert len(set(sample)) == 2
        assert abs(times - n_seeds / 10) < 5 * (n_seeds * 0.1 * 0.9) ** 0.5, sample
    for line in lines:  # the first and the last as well: 8,000 times (standard deviation 69)
        times = sum(count for sample, count in drawn.items() if line in sample)
        assert abs(times - n_seeds * 0.4) < 4 * (n_seeds * 0.4 * 0.6) ** 0.5, line


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
    plain = describe_file(path)
    assert plain == {"file": str(path), "bytes": 4, "modified": 123456789}
    path.write_text("five!")
    os.utime(path, ns=(7, 123456789))
    assert describe_file(path) == {**plain, "bytes": 5}
    (tmp_path / "link.txt").symlink_to("a.txt")
    assert describe_file(tmp_path / "link.txt") == describe_file(path)
