"""From text to token files and windows: WikiText-103's counts, both sources, broken files, interruptions."""

import os
from concurrent.futures import ThreadPoolExecutor

import datasets
import numpy as np
import pytest

from datamodules import Bytes, PythonReference, SentencePiece, WikiText103
from helpers.prepared import attach, prepare, prepared
from helpers.small_models import build
from llp.errors import SettingError


def test_a_split_is_one_stream_that_starts_with_a_newline(wikitext, tmp_path):
    for tokenizer in (Bytes(), SentencePiece(320)):
        data = prepare(wikitext, tmp_path / "cache", tokenizer=tokenizer)
        for split, file in (("train", "train"), ("validation", "valid"), ("test", "test")):
            text = (wikitext / f"wiki.{file}.tokens").read_bytes().decode()
            (document,) = data.files[split].documents
            assert data.tokenizer.decode(data.files[split].tokens) == "\n" + text
            assert document.bytes == len(text.encode())
            assert document.words == len(text.split()) + text.count("\n")
            assert document.tokens == len(data.files[split].tokens) - 1


@pytest.mark.skipif("LLP_WIKITEXT103" not in os.environ, reason="LLP_WIKITEXT103 names no folder with the real text")
def test_official_word_counts(tmp_path):
    data = prepare(os.environ["LLP_WIKITEXT103"], tmp_path)
    assert data.files["test"].documents[0].words == 245_569
    assert data.files["test"].documents[0].bytes == 1_281_077
    assert data.files["validation"].documents[0].words == 217_646
    assert data.files["test"].documents[0].plain_words == 241_211
    articles = prepare(os.environ["LLP_WIKITEXT103"], tmp_path, articles=True)
    assert [len(articles.files[split].documents) for split in ("test", "validation")] == [60, 60]
    assert sum(document.words for document in articles.files["test"].documents) == 245_569


def test_articles_as_documents(tmp_path):
    folder = tmp_path / "wikitext"
    folder.mkdir()
    articles = [
        " \n = First = \n \n some text \n \n = = A section = = \n \n x = y = z \n",
        " \n = Second : it 's = = here = \n \n more \n",
        " \n = Third = \n \n last \n \n",
    ]
    for split in ("train", "valid", "test"):
        (folder / f"wiki.{split}.tokens").write_text("".join(articles) * (9 if split == "train" else 1))
    data = prepare(folder, tmp_path / "cache", articles=True, window_len=8)
    documents = data.files["test"].documents
    assert [document.name for document in documents] == ["First", "Second : it 's = = here", "Third"]
    for document, text in zip(documents, articles, strict=True):
        assert data.tokenizer.decode(data.files["test"].text_of(document)) == text
        assert data.files["test"].tokens[document.start] == Bytes.start_token
        assert document.words == len(text.split()) + text.count("\n")
        assert document.plain_words == len(text.split())


def test_the_hub_gives_the_same_bytes(wikitext, tmp_path):
    hub = tmp_path / "hub"  # a copy in the Hub's layout: one row a line, blank lines empty
    (hub / "wikitext-103-v1").mkdir(parents=True)
    for split, file in (("train", "train"), ("validation", "valid"), ("test", "test")):
        lines = (wikitext / f"wiki.{file}.tokens").read_text(encoding="utf-8").splitlines(keepends=True)
        rows = ["" if line == " \n" else line for line in lines]
        datasets.Dataset.from_dict({"text": rows}).to_parquet(hub / f"wikitext-103-v1/{split}-00000-of-00001.parquet")
    files = [f"- split: {split}\n    path: wikitext-103-v1/{split}-*" for split in ("train", "validation", "test")]
    (hub / "README.md").write_text(
        "---\nconfigs:\n- config_name: wikitext-103-v1\n  data_files:\n  " + "\n  ".join(files) + "\n---\n"
    )
    local = prepare(wikitext, tmp_path / "cache")
    settings = {"tokenizer": Bytes(), "window_len": 16, "cache_dir": str(tmp_path / "cache2")}
    from_hub = prepared(WikiText103(None, hub_id=str(hub), **settings))
    assert from_hub.about["data_fingerprint"] == local.about["data_fingerprint"]
    for split in local.splits:
        assert from_hub.files[split].documents == local.files[split].documents
        np.testing.assert_array_equal(from_hub.files[split].tokens, local.files[split].tokens)


def test_python_reference_keeps_the_splits_apart(tmp_path):
    data = PythonReference(cache_dir=str(tmp_path), tokenizer=Bytes(), window_len=16)
    paragraphs = {
        split: {p for text in data.texts(split) for p in b"".join(text.blocks).decode().rstrip("\n").split("\n\n")}
        for split in data.splits
    }
    assert all(len(members) > 50 for members in paragraphs.values())
    assert not paragraphs["train"] & paragraphs["test"]
    assert not paragraphs["train"] & paragraphs["validation"]
    assert not paragraphs["validation"] & paragraphs["test"]
    prepared(data, "test")
    starts = [document.start for document in data.files["test"].documents]
    assert len(starts) > 5
    assert (data.files["test"].tokens[starts] == data.tokenizer.start_token).all()


def test_prepared_once_and_keyed_by_text_and_tokenizer(wikitext, tmp_path):
    cache = tmp_path / "cache"
    first = prepare(wikitext, cache).prepared_folder()
    before = first.stat().st_mtime_ns
    assert prepare(wikitext, cache).prepared_folder() == first
    assert first.stat().st_mtime_ns == before
    assert prepare(wikitext, cache, tokenizer=SentencePiece(320)).prepared_folder() != first
    with (wikitext / "wiki.test.tokens").open("a") as stream:
        stream.write(" one more line \n")
    assert prepare(wikitext, cache).prepared_folder() != first
    assert len(list(cache.iterdir())) == 3


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_a_stopped_preparation_leaves_nothing(wikitext, tmp_path, monkeypatch, stop):
    data = WikiText103(str(wikitext), cache_dir=str(tmp_path / "cache"), tokenizer=Bytes(), window_len=16)
    monkeypatch.setattr(Bytes, "encode", lambda self, lines: (_ for _ in ()).throw(stop))
    expected = SettingError if isinstance(stop, OSError) else KeyboardInterrupt
    with pytest.raises(expected, match="cache_dir = .*No space left" if isinstance(stop, OSError) else None):
        data.prepare_data()
    assert list((tmp_path / "cache").iterdir()) == []


def test_two_at_once_prepare_once(tmp_path, monkeypatch):
    """Each opens the lock anew, as processes do."""
    trained = []
    train = SentencePiece.train
    monkeypatch.setattr(SentencePiece, "train", lambda self, lines: trained.append(self) or train(self, lines))
    both = [PythonReference(cache_dir=str(tmp_path), tokenizer=SentencePiece(400), window_len=16) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(PythonReference.prepare_data, both))
    assert len(trained) == 1
    for data in both:
        data.setup("fit")
    assert len(list(tmp_path.iterdir())) == 1


def test_a_model_that_does_not_fit_the_windows_stops_before_the_text_is_prepared(wikitext, tmp_path):
    data = WikiText103(str(wikitext), cache_dir=str(tmp_path / "cache"), tokenizer=Bytes(), window_len=3)
    attach(data, build("LLP", segment_len=4))
    with pytest.raises(SettingError, match="segment_len = 4: window_len = 3 is shorter"):
        data.prepare_data()
    assert not (tmp_path / "cache").exists()
