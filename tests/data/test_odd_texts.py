"""Texts as people have them: marks, encodings, names, line ends, very long lines, parts that are missing."""

import json
import os
from pathlib import Path

import pytest

from datamodules import SentencePiece
from datamodules.documents import read_text
from datamodules.tokenizers.sentence_piece import _of_length
from helpers.corpus import text_files
from helpers.prepared import prepared
from llp.errors import SettingError

SPLITS = ("train", "validation", "test")
MARK = b"\xef\xbb\xbf"
LINES = [f"line {number} of the text\n" for number in range(40)]


def prepare(path, tmp_path):
    return prepared(text_files(path, tmp_path))


def write(folder, contents, suffix=".txt"):
    """A file of bytes for each split."""
    folder.mkdir()
    for split in SPLITS:
        (folder / f"{split}{suffix}").write_bytes(contents)
    return folder


def jsonl(*texts):
    return "".join(json.dumps({"text": text}) + "\n" for text in texts).encode()


@pytest.mark.parametrize(("suffix", "content"), [(".txt", b"ab\nc"), (".jsonl", jsonl("ab\nc", "\ufeffd"))])
def test_a_byte_order_mark_is_no_text(tmp_path, suffix, content):
    plain = prepare(write(tmp_path / "plain", content, suffix), tmp_path)
    marked = prepare(write(tmp_path / "marked", MARK + content, suffix), tmp_path)
    assert marked.about["data_fingerprint"] == plain.about["data_fingerprint"]
    assert marked.files["test"].tokens.tolist() == plain.files["test"].tokens.tolist()


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_another_encoding_is_named(tmp_path, encoding, suffix):
    content = jsonl("some text").decode().encode(encoding)
    with pytest.raises(SettingError, match=rf"path = .*{suffix}: it is UTF-(16|32); convert it to UTF-8"):
        prepare(write(tmp_path / "text", content, suffix), tmp_path)


@pytest.mark.parametrize(
    ("suffix", "content"),
    [(".txt", b"caf\xe9"), (".txt", MARK + b"caf\xe9"), (".jsonl", MARK + jsonl("a") + b'{"text": "\xe9"}')],
)
def test_a_byte_that_is_not_utf_8_is_found_in_the_file(tmp_path, suffix, content):
    folder, position = write(tmp_path / "text", content, suffix), content.index(0xE9)
    with pytest.raises(SettingError, match=f"path = {folder}/.*{suffix}: it is not UTF-8 at byte {position};"):
        prepare(folder, tmp_path)


def test_names_may_be_any_bytes(tmp_path):
    folder = os.fsencode(tmp_path) + b"/text\xe9"
    os.makedirs(folder + b"/sub\xff")
    for number in range(40):
        Path(os.fsdecode(folder + b"/sub\xff/caf\xe9%d.txt" % number)).write_text("some text\n")
    data = prepare(Path(os.fsdecode(folder)), tmp_path)
    names = [document.name for document in data.files["train"].documents]
    assert names[0] == r"sub\xff/caf\xe90.txt"
    assert len({*names}) == len(names) == 36
    data.progress.samples = 1
    assert data.describe_samples(1)[0].encode()


def test_line_ends_and_nuls_are_text(tmp_path):
    content = "a\r\nb\rc\n\0d\0\n"
    data = prepare(write(tmp_path / "text", content.encode()), tmp_path)
    assert data.tokenizer.decode(data.files["test"].text_of(*data.files["test"].documents)) == content
    data = prepare(write(tmp_path / "lines", jsonl(content, "two").replace(b"\n", b"\r\n"), ".jsonl"), tmp_path)
    assert [document.bytes for document in data.files["test"].documents] == [len(content), 3]


def test_an_empty_file_is_named_and_an_empty_document_is_one(tmp_path):
    folder = write(tmp_path / "text", b"some text\n")
    (folder / "validation.txt").write_bytes(b"")
    with pytest.raises(SettingError, match=r"validation\.txt is empty; remove it"):
        prepare(folder, tmp_path)
    data = prepare(write(tmp_path / "lines", jsonl("one", "", "three"), ".jsonl"), tmp_path)
    assert [document.tokens for document in data.files["train"].documents] == [3, 0, 5]


# Long lines


@pytest.fixture
def short_limits(monkeypatch):
    """A line of more than 100 bytes is long, and blocks have 30."""
    monkeypatch.setattr("datamodules.documents._LONGEST", 100)
    monkeypatch.setattr("datamodules.documents._BLOCK", 30)


@pytest.mark.parametrize(
    "text",
    [
        "word " * 200 + "\nshort\n" + "more words  and \t spaces " * 40,
        "日本語" * 100 + "\n" + "é" * 301,
        "x" * 1000,
        "日本\u3000" * 100,
    ],
)
def test_a_long_line_is_cut_and_nothing_is_lost(tmp_path, short_limits, text):
    (tmp_path / "a.txt").write_bytes(text.encode())
    blocks = [block.decode() for block in read_text(tmp_path / "a.txt", "a").checked_blocks()]
    assert "".join(blocks) == text
    assert max(len(block.encode()) for block in blocks) <= 130
    has_words = max(map(len, text.split())) < 50
    assert not has_words or sum(len(block.split()) for block in blocks) == len(text.split())


def test_lines_up_to_the_limit_are_whole(tmp_path, short_limits):
    lines = ["y" * number + "\n" for number in range(100)]
    (tmp_path / "a.txt").write_text("".join(lines))
    assert [line for block in read_text(tmp_path / "a.txt", "a").lines() for line in block] == lines


def test_one_line_of_any_length_is_split_by_share(tmp_path, short_limits):
    text = "some words in a line " * 500
    (tmp_path / "text8").write_text(text)
    data = text_files(tmp_path / "text8", tmp_path)
    parts = {split: "".join(block.decode() for text in data.texts(split) for block in text.blocks) for split in SPLITS}
    assert "".join(parts.values()) == text
    assert len(parts["train"]) == pytest.approx(0.9 * len(text), abs=10)
    assert sum(len(part.split()) for part in parts.values()) == len(text.split())


def test_a_tokenizer_is_trained_on_long_lines():
    long = " ".join(f"word{number % 9}" for number in range(200_000))
    pieces = [*_of_length(["short\n", long + "\n", "日" * 500_000])]
    assert pieces[0] == "short"
    assert "".join(pieces[1:]) == long + "日" * 500_000
    assert max(map(len, pieces)) <= 4096
    tokenizer = SentencePiece(300)
    tokenizer.train([long, *LINES])
    assert len(tokenizer.encode(["word3 word4"])) <= 4


# Parts of a split


@pytest.mark.parametrize(
    ("removed", "first", "missing"),
    [(2, 0, "train-00002-of-00004.jsonl"), (3, 0, "train-00003-of-00004.jsonl"), (0, 1, "train-00001-of-00004.jsonl")],
)
def test_a_missing_part_is_named(tmp_path, removed, first, missing):
    folder = write(tmp_path / "text", jsonl("some text"), ".jsonl")
    (folder / "train.jsonl").unlink()
    parts = [folder / f"train-{number:05}-of-00004.jsonl" for number in range(first, first + 4)]
    for part in parts:
        part.write_bytes(jsonl("a part"))
    assert prepare(folder, tmp_path).files["train"].documents[3].name == f"{parts[3].name}:1"
    parts[removed].unlink()
    with pytest.raises(SettingError, match=f"path = {folder}/{missing}: this part of the text is missing; add it"):
        prepare(folder, tmp_path)


@pytest.mark.parametrize("name", ["train-00001-of-00002.jsonl.gz", "more.txt.zst", "a/b.JSONL.xz"])
def test_a_compressed_file_is_named(tmp_path, name):
    folder = write(tmp_path / "text", b"some text\n")
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"\x1f\x8b")
    for path in (folder, folder / name):
        with pytest.raises(SettingError, match=f"path = {folder / name}: it is compressed, .*; decompress it"):
            prepare(path, tmp_path)
