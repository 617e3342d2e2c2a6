"""A fast tokenizer gives the very tokens of our own, or is not written."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from helpers import exported
from llp.export import fast_tokenizer
from llp.export.model_folder import write_folder


@pytest.fixture(scope="module")
def pieces(tmp_path_factory):
    return exported.trained_tokenizer(tmp_path_factory.mktemp("pieces"))


def library(made):
    tokenizer = Tokenizer.from_str(json.dumps(made.files["tokenizer.json"]))
    tokenizer.encode_special_tokens = True
    return tokenizer


@pytest.fixture(scope="module")
def fast(pieces):
    return library(fast_tokenizer.fast_tokenizer(pieces, pieces.start_token))


@settings(max_examples=100, deadline=None, database=None)
@given(st.text() | st.text("ab \n\u2581<s>unk0x", max_size=30))
def test_any_text(pieces, fast, text):
    tokens = [pieces.start_token, *pieces.encode(text.splitlines(keepends=True)).tolist()]
    assert fast.encode(text).ids == tokens
    assert fast.decode(tokens[1:], skip_special_tokens=False) == text


def test_merges_by_definition():
    """Of "abc" both ways to be put together; "bc" comes before it, and "c" is no merge."""
    scores = {"ab": -1.0, "abc": -5.0, "bc": -2.0, "a": -6.0, "b": -7.0, "c": -8.0, "xy": -3.0}
    assert fast_tokenizer.merges(scores) == [("a", "b"), ("b", "c"), ("a", "bc"), ("ab", "c")]


def test_a_swapped_merge_is_refused(pieces, monkeypatch):
    right = fast_tokenizer.merges

    def swapped(scores):
        pairs = right(scores)
        pairs[0], pairs[40] = pairs[40], pairs[0]
        return pairs

    monkeypatch.setattr(fast_tokenizer, "merges", swapped)
    made = fast_tokenizer.fast_tokenizer(pieces, pieces.start_token)
    assert made.files == {}
    assert "other tokens than llp's own tokenizer does" in made.note


def test_unigram_goes_without_a_fast_tokenizer(tmp_path):
    tokenizer = exported.trained_tokenizer(tmp_path, model_type="unigram")
    model = exported.small("LLP", vocab_size=500)
    path = exported.save(tmp_path / "a.ckpt", model, tokenizer)
    assert "No tokenizer.json: a unigram model" in write_folder(path, tmp_path / "export")
    assert not (tmp_path / "export/tokenizer.json").exists()
    assert (tmp_path / "export/tokenizer.model").read_bytes() == tokenizer.serialized()
    assert "No tokenizer.json: a unigram model" in (tmp_path / "export/README.md").read_text()
