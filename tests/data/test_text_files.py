"""Text of one's own: what becomes which split, and what is refused before any long work."""

import json
import random
from fractions import Fraction
from itertools import pairwise
from math import floor

import pytest

from helpers.corpus import text_files
from helpers.prepared import prepared
from llp.errors import SettingError

SPLITS = ("train", "validation", "test")


def write(root, **texts):
    for name, text in texts.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="")
    return root


def texts(data):
    """The documents of each split: name and text."""
    return {split: [(text.name, b"".join(text.blocks).decode()) for text in data.texts(split)] for split in SPLITS}


@pytest.mark.parametrize("validation", ["validation", "Val"])
@pytest.mark.parametrize("kind", ["folders", "files", "shards"])
def test_what_is_named_after_a_split_is_that_split(tmp_path, validation, kind, caplog):
    root = tmp_path / "text"
    for name in ("train", validation, "test"):
        line = f'{{"text": "of {name}"}}\n'
        if kind == "folders":
            write(root, **{f"{name}__deep__a.txt": f"a of {name}\n", f"{name}__b.jsonl": 2 * line})
        elif kind == "files":
            write(root, **{f"{name}.jsonl": 3 * line})
        else:
            write(root, **{f"{name}-{shard:05}-of-00003.jsonl": line for shard in range(3)})
    data = text_files(root, tmp_path)
    with caplog.at_level("INFO"):
        prepared(data)
    for split, name in zip(SPLITS, ("train", validation, "test"), strict=True):
        documents = data.files[split].documents
        assert len(documents) == 3
        for document in documents:
            assert f"of {name}" in data.tokenizer.decode(data.files[split].text_of(document))
    what = {"folders": "{}/", "files": "{}.jsonl", "shards": "{}-*.jsonl"}[kind]
    said = ", ".join(
        f"{split} is {what.format(name)} (3 documents)"
        for split, name in zip(SPLITS, ("train", validation, "test"), strict=True)
    )
    assert caplog.messages == [f"text_files: {said}"]
    assert data.splits_note() == said


def test_documents_are_named_after_file_and_line(tmp_path):
    for split in SPLITS:
        write(tmp_path / "text", **{
            f"{split}__deep__a.txt": f"the {split} text\n" * 9,
            f"{split}__b.jsonl": '{"text": "one\\nline"}\n\n{"text": "two é"}\n',
        })  # fmt: skip
    documents = texts(text_files(tmp_path / "text", tmp_path))["test"]
    assert [name for name, _ in documents] == ["test/b.jsonl:1", "test/b.jsonl:3", "test/deep/a.txt"]
    assert documents[0][1] == "one\nline"
    assert documents[1][1] == "two é"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train/a.txt", "test/a.txt"], r"has the splits train/, test/; it needs exactly one name for each split"),
        (["train/a.txt", "val/a.txt", "dev/a.txt", "test/a.txt"], r"splits train/, dev/, val/, test/; it needs"),
        (["train/a.txt", "train.txt", "val/a.txt", "test.txt"], r"splits train/, train\.txt, val/, test\.txt;"),
        (["train/a.txt", "val/a.txt", "test/a.txt", "b.txt"], r"val/, test/, and other text in b\.txt; .* no other"),
        ([".hidden/a.txt", ".b.txt"], r"it contains no \.txt or \.jsonl file"),
    ],
)
def test_names_that_leave_a_doubt_are_refused(tmp_path, names, message):
    root = tmp_path / "text"
    for name in names:
        write(root, **{name.replace("/", "__"): "some text\n" * 50})
    with pytest.raises(SettingError, match=rf"data\.init_args\.path = {root}: .*{message}"):
        text_files(root, tmp_path).prepare_data()
    assert not (tmp_path / "cache").exists()


def test_documents_are_dealt_out_by_share(tmp_path, caplog):
    lines = [json.dumps({"body": f"document {number} of the text"}) for number in range(200)]
    write(tmp_path / "text", **{"all.jsonl": "\n".join(lines) + "\n"})
    settings = {"text_key": "body", "validation_share": 0.1, "test_share": 0.05}
    data = text_files(tmp_path / "text", tmp_path, **settings)
    with caplog.at_level("INFO"):
        prepared(data)
    names = {split: {document.name for document in data.files[split].documents} for split in data.splits}
    assert len(names["train"] | names["validation"] | names["test"]) == 200
    assert {split: len(members) for split, members in names.items()} == {"train": 170, "validation": 20, "test": 10}
    dealt = "200 documents are dealt out evenly: 170 for train, 20 for validation, 10 for test"
    assert caplog.messages == [f"text_files: no file is named after a split, so {dealt}"]
    for bad in ('{"txt": 1}', '{"body": 1}', "{", r'{"body": "\ud800"}'):
        (tmp_path / "text/bad.jsonl").write_text(f'{{"body": "fine"}}\n{bad}\n')
        with pytest.raises(SettingError, match=r"bad\.jsonl: line 2 has no text under 'body'"):
            text_files(tmp_path / "text", tmp_path, text_key="body").prepare_data()


def whole(documents):
    """Parts of documents put together again, by the names and bytes that they state."""
    parts = {}
    for name, text in documents:
        document, _, place = name.rpartition(", bytes ")
        start, stop = map(int, place.split("-"))
        assert len(text.encode()) == stop - start
        parts.setdefault(document, []).append((start, stop, text))
    for pieces in parts.values():
        pieces.sort()
        assert pieces[0][0] == 0
        for before, after in pairwise(pieces):
            assert before[1] == after[0]
            assert before[2].endswith("\n")
    return {document: "".join(text for _, _, text in pieces) for document, pieces in parts.items()}


@pytest.mark.parametrize("seed", range(8))
def test_few_documents_are_cut_at_line_ends_and_every_byte_is_in_one_split(tmp_path, monkeypatch, seed):
    rng = random.Random(seed)
    monkeypatch.setattr("datamodules.documents._BLOCK", rng.choice([1, 7, 100, 1 << 18]))
    shares = {"validation_share": rng.choice([0.05, 0.2, 0.5]), "test_share": rng.choice([0.05, 0.13, 0.4])}
    kept = {}
    for number in range(rng.randint(1, 3)):
        lines = ["é" * rng.choice([0, 1, 9, 80]) + rng.choice(["\n", "\r\n"]) for _ in range(rng.randint(150, 300))]
        text = "".join(lines) + rng.choice(["", "no line end"])
        if rng.random() < 0.5:
            kept[f"{number}.txt"] = text
            write(tmp_path / "text", **{f"{number}.txt": text})
        else:
            kept[f"{number}.jsonl:2"] = text
            write(tmp_path / "text", **{f"{number}.jsonl": "\n" + json.dumps({"text": text}) + "\n"})
    data = text_files(tmp_path / "text", tmp_path, **shares)
    splits = texts(data)
    assert texts(text_files(tmp_path / "text", tmp_path, **shares)) == splits
    rng.shuffle(documents := [document for split in SPLITS for document in splits[split]])
    assert whole(documents) == kept
    n_bytes = sum(len(text.encode()) for text in kept.values())
    for split in SPLITS:
        size = sum(len(text.encode()) for _, text in splits[split])
        assert data.n_bytes(split) == size
        share = {"train": 1 - sum(shares.values())}.get(split, shares.get(f"{split}_share"))
        assert abs(size - share * n_bytes) < 2 * 165 * len(kept)  # the longest line has 162 bytes
    for name in kept:  # in each document training comes first, and the test last
        starts = [int(n.rpartition(" ")[2].split("-")[0]) for s in SPLITS for n, _ in splits[s] if n.startswith(name)]
        assert starts == sorted(starts)


def test_one_file_of_any_name_is_enough(tmp_path, caplog):
    text = "".join(f"line {number} of the file\n" for number in range(1000))
    write(tmp_path, **{"novel": text})
    with caplog.at_level("INFO"):
        data = prepared(text_files(tmp_path / "novel", tmp_path))
    parts = {}
    for split in SPLITS:
        (document,) = data.files[split].documents
        parts[split] = data.tokenizer.decode(data.files[split].text_of(document))
        assert len(parts[split]) == pytest.approx({"train": 0.9}.get(split, 0.05) * len(text), abs=30)
    assert "".join(parts.values()) == text
    sizes = ", ".join(f"{len(parts[split]):,} bytes for {split}" for split in SPLITS)
    cut = "too few documents for whole ones in each split (1 document), so each is cut at line ends"
    assert caplog.messages == [f"text_files: {cut}: {sizes}"]


def test_seven_files_are_cut_and_twenty_are_dealt_out(tmp_path):
    for number in range(20):
        write(tmp_path / "text", **{f"{number:02}.txt": f"a line of text in document {number}\n" * 30})
        data = text_files(tmp_path / "text", tmp_path)
        counts = [len(documents) for documents in texts(data).values()]
        assert counts == [number + 1] * 3 if number < 19 else [18, 1, 1]
        assert data.source()["cut"] == (number < 19)


def test_what_is_not_there(tmp_path):
    with pytest.raises(SettingError, match=r"path = .*nowhere: there is no such file or folder"):
        text_files(tmp_path / "nowhere", tmp_path).prepare_data()


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
    settings = {"validation_share": float(shares[0]), "test_share": float(shares[1])}
    documents = texts(text_files(folder, tmp_path, **settings))
    dealt = {split: [name for name, _ in members] for split, members in documents.items()}
    assert dealt["test"] == [f"a.jsonl:{n + 1}" for n in tested]
    assert dealt["validation"] == [f"a.jsonl:{n + 1}" for n in held_out if n not in tested]
    assert len(dealt["validation"]) == 1000 * validation
    assert len(dealt["test"]) == 1000 * test
