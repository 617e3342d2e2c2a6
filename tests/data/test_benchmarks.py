"""PG-19: both sources, what is counted; bad text of the benchmarks; and `llp prepare`."""

import datasets
import pytest

from datamodules import PG19, Bytes, SentencePiece, WikiText103
from datamodules.pg19 import _OFFICIAL
from helpers.prepared import files, prepared
from llp.errors import SettingError

BOOKS = {
    "train": {"11": "Down the rabbit hole\n\n  she went . " * 30, "9": "A second book , with words .\n" * 20},
    "validation": {"205": "The mass of men \n lead lives"},
    "test": {"2641": "A room with a view .\n", "408": "Souls — of black folk\n\n\n"},
}
TITLES = {"11": "Alice", "9": 'A "quoted", title', "205": "Walden", "2641": "A Room", "408": "Souls"}


@pytest.fixture
def pg19(tmp_path):
    folder = tmp_path / "pg19"
    for split, books in BOOKS.items():
        (folder / split).mkdir(parents=True)
        for number, text in books.items():
            (folder / split / f"{number}.txt").write_text(text, encoding="utf-8", newline="")
    quoted = {number: title.replace('"', '""') for number, title in TITLES.items()}
    (folder / "metadata.csv").write_text("".join(f'{n},"{title}",1900,url/{n}\n' for n, title in quoted.items()))
    return folder


def test_books_are_documents_in_the_order_of_their_numbers(pg19, tmp_path):
    data = prepared(PG19(str(pg19), cache_dir=str(tmp_path / "cache"), tokenizer=Bytes(), window_len=16))
    for split, books in BOOKS.items():
        documents = data.files[split].documents
        numbers = sorted(books, key=int)
        assert [document.name for document in documents] == [f"{TITLES[number]} ({number})" for number in numbers]
        for document, number in zip(documents, numbers, strict=True):
            assert data.tokenizer.decode(data.files[split].text_of(document)) == books[number]
            assert document.words == document.plain_words == len(books[number].split())
            assert document.bytes == len(books[number].encode())
            assert data.files[split].tokens[document.start] == Bytes.start_token


def test_the_hub_gives_the_same_books(pg19, tmp_path):
    hub = tmp_path / "hub"
    (hub / "data").mkdir(parents=True)
    for split, books in BOOKS.items():
        numbers = sorted(books, key=int)
        rows = {
            "short_book_title": [f"{TITLES[number]} ({number})" for number in numbers],
            "publication_date": [1900] * len(numbers),
            "url": [f"url/{number}" for number in numbers],
            "text": [books[number] for number in numbers],
        }
        datasets.Dataset.from_dict(rows).to_parquet(hub / f"data/{split}-00000-of-00001.parquet")
    settings = {"tokenizer": SentencePiece(300), "window_len": 16, "cache_dir": str(tmp_path / "cache")}
    local, from_hub = prepared(PG19(str(pg19), **settings)), prepared(PG19(hub_id=str(hub), **settings))
    assert from_hub.about["data_fingerprint"] == local.about["data_fingerprint"]
    assert from_hub.about["tokenizer_fingerprint"] == local.about["tokenizer_fingerprint"]
    for split in BOOKS:
        assert from_hub.files[split].documents == local.files[split].documents


def test_official_word_counts_are_for_whole_splits(pg19, tmp_path, monkeypatch):
    data = prepared(PG19(str(pg19), cache_dir=str(tmp_path / "cache"), tokenizer=Bytes(), window_len=16))
    assert data.official_words("test") is None
    assert "2 books here; the official split has 100" in data.word_note("test")
    monkeypatch.setitem(_OFFICIAL, "test", (2, 1234))  # as if these two were the whole split
    assert data.official_words("test") == 1234
    assert "1,234 (the text has 11)" in data.word_note("test")


@pytest.mark.parametrize(
    ("cls", "name", "content", "message"),
    [
        (PG19, "train/9.txt", b"", r"9\.txt is empty; remove it"),
        (PG19, "train/9.txt", b"fine\n\xff", r"9\.txt: it is not UTF-8 at byte 5"),
        (PG19, "validation", None, "the validation split is missing"),
        (WikiText103, "wiki.valid.tokens", b"", r"wiki\.valid\.tokens is empty; remove it"),
        (WikiText103, "wiki.valid.tokens", b" caf\xe9 \n", r"wiki\.valid\.tokens: it is not UTF-8 at byte 4"),
        (WikiText103, "wiki.valid.tokens", None, r"wiki\.valid\.tokens is missing; add it"),
    ],
)
def test_bad_text_is_one_error_and_the_cache_is_untouched(request, tmp_path, cls, name, content, message):
    folder = request.getfixturevalue({PG19: "pg19", WikiText103: "wikitext"}[cls])
    data = cls(str(folder), tokenizer=Bytes(), window_len=16, cache_dir=str(tmp_path / "cache"))
    data.prepare_data()
    before = files(tmp_path / "cache")
    if content is None:
        (folder / name).rename(tmp_path / "away")
    else:
        (folder / name).write_bytes(content)
    with pytest.raises(SettingError, match=rf"data\.init_args\.path = .*{message}"):
        data.prepare_data()
    assert files(tmp_path / "cache") == before
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_prepare_command(run, work):
    status, out, err = run("prepare", "--config", "tiny.yaml")
    assert status == 0, err
    text = (work / "wikitext/wiki.test.tokens").read_bytes()
    cells = out.splitlines()[3].split()
    assert cells[0] == "test"
    assert cells[3] == cells[4] == f"{len(text):,}"  # bytes are tokens here
    assert "Prepared in" in out
    status, _, err = run("prepare", "--config", "tiny.yaml", "--data.init_args.path", "nowhere")
    assert status == 1
    assert "data.init_args.path = nowhere" in err
    status, _, err = run("fit", "--config", "tiny.yaml")  # finds what was prepared
    assert status == 0
    assert "encoding" not in err
