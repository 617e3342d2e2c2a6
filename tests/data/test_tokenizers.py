"""Every string comes back exactly; training is the same bytes each time."""

import hashlib
import re

import pytest
import sentencepiece as spm

from datamodules.tokenizers import Bytes, SentencePiece
from helpers.corpus import Given
from helpers.prepared import prepared
from helpers.texts import LINES, STRANGE, assert_every_string_comes_back, assert_restored_from_its_bytes
from llp.errors import SettingError


def trained(lines, **settings):
    tokenizer = SentencePiece(**{"vocab_size": 330, **settings})
    tokenizer.train(lines)
    return tokenizer


@pytest.fixture(scope="module", params=["bpe", "unigram", "bytes"])
def tokenizer(request):
    tokenizer = Bytes() if request.param == "bytes" else SentencePiece(330, model_type=request.param)
    tokenizer.train(LINES)
    return tokenizer


def test_every_string_comes_back(tokenizer):
    assert_every_string_comes_back(tokenizer)


def test_a_tokenizer_is_restored_from_its_bytes_alone(tokenizer):
    for restored in (type(tokenizer).restored(tokenizer.serialized(), tokenizer.settings()), type(tokenizer)()):
        restored.restore(tokenizer.serialized())  # whatever it was made with
        assert_restored_from_its_bytes(tokenizer, restored)


def test_unk_and_newline_are_one_token_each():
    tokenizer = trained(LINES)
    newline, unk = tokenizer.encode(["\n"]), tokenizer.encode(["<unk>"])
    assert len(newline) == len(unk) == 1
    text = tokenizer.encode(["the <unk> sat\n", "\n"])
    assert list(text).count(newline[0]) == 2
    assert list(text).count(unk[0]) == 1
    assert tokenizer._processor.unk_id() not in tokenizer.encode(["日本語"])


def test_a_given_model(tmp_path):
    trained(LINES).save(tmp_path)
    model = tmp_path / "tokenizer.model"
    given = SentencePiece(model_file=str(model))
    assert given.vocab_size == 330  # the model's own
    assert given.decode(given.encode(LINES[:3])) == "".join(LINES[:3])
    assert given.fingerprint == hashlib.sha256(model.read_bytes()).hexdigest()
    with pytest.raises(SettingError, match="model_file = nowhere"):
        SentencePiece(model_file="nowhere")
    model.write_bytes(b"no model")
    with pytest.raises(SettingError, match="can't be read as a SentencePiece model"):
        SentencePiece(model_file=str(model))


def trained_elsewhere(path, **settings):
    """A model that SentencePiece's own trainer makes, with its own defaults: it normalizes to NFKC, and more."""
    spm.SentencePieceTrainer.train(sentence_iterator=iter(LINES), model_prefix=str(path), minloglevel=2, **settings)
    return f"{path}.model"


LLAMA = {
    "vocab_size": 330,
    "model_type": "bpe",
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
}


@pytest.mark.parametrize("settings", [LLAMA, {"vocab_size": 325, "byte_fallback": True}])
def test_a_given_model_is_used_without_its_normalization(tmp_path, settings):
    path = trained_elsewhere(tmp_path / "given", **settings)
    theirs = spm.SentencePieceProcessor(model_file=path)
    assert theirs.decode(theirs.encode("one\n") + theirs.encode("two\n")) != "one\ntwo\n"  # the dummy prefix
    given = SentencePiece(model_file=path)
    assert_every_string_comes_back(given)
    # Behind the first word it is their model: the same pieces with the same numbers.
    assert given.encode(["the cat sat on a mat"])[-4:].tolist() == theirs.encode("the cat sat on a mat")[-4:]
    assert given.fingerprint != hashlib.sha256((tmp_path / "given.model").read_bytes()).hexdigest()
    given.train([])
    given.save(tmp_path)
    loaded = SentencePiece()
    loaded.load(tmp_path, given.fingerprint)
    assert_restored_from_its_bytes(given, loaded)


def test_a_given_model_that_loses_text_is_refused_with_the_flags_that_would_be_right(tmp_path):
    path = trained_elsewhere(tmp_path / "unknown", vocab_size=70)
    with pytest.raises(SettingError, match=r"model_file = .* not return every string, for example 'a b\\n'") as e:
        SentencePiece(model_file=path)
    (flags,) = re.findall(r"`spm_train (.*?)`", str(e.value))
    right = dict(flag.removeprefix("--").split("=") for flag in flags.split())
    path = trained_elsewhere(tmp_path / "right", vocab_size=325, **right)
    given = SentencePiece(model_file=path)
    assert given.decode(given.encode(STRANGE)) == "".join(STRANGE)
    assert given.serialized() == (tmp_path / "right.model").read_bytes()  # nothing had to be changed
    path = trained_elsewhere(tmp_path / "no_start", vocab_size=325, **{**right, "bos_id": -1})
    with pytest.raises(SettingError, match=r"model_file = .*: it has no start token; .*--bos_id=1"):
        SentencePiece(model_file=path)


@pytest.mark.parametrize("settings", [{}, {"sample_lines": 50}, {"model_type": "unigram"}])
def test_training_gives_the_same_bytes(settings):
    first, second = (trained(iter(LINES), **settings).serialized() for _ in range(2))
    assert first == second


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_a_vocabulary_that_the_text_does_not_support(model_type):
    with pytest.raises(SettingError, match=r"tokenizer\.init_args\.vocab_size = 50000: .* set it to \d+ or less$"):
        SentencePiece(50_000, model_type=model_type).train(LINES)
    with pytest.raises(SettingError, match=r"vocab_size = 261: .* set it to \d+ or more$"):
        SentencePiece(261, model_type=model_type).train(LINES)


# What a SentencePiece model is trained on

WORDS = ["cat", "sat", "mat", "dog", "bird", "outside", "singing", "moved"]


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_indentation_is_learnt(model_type):
    """Lines come as they are, and pieces of spaces alone are allowed: eight spaces become one token or two."""
    lines = [f"        {word} {word}\n" for word in WORDS * 30]
    tokenizer = trained(lines, vocab_size=280, model_type=model_type)
    assert len(tokenizer.encode(["        "])) <= 2
    assert len(tokenizer.encode([lines[0]])) < 8


def test_training_reads_the_training_split_alone(tmp_path):
    texts = {
        "train": {"a": "cat sat on the mat\n" * 99},
        "validation": {"c": "zyx\n" * 99},
        "test": {"e": "wvu\n" * 99},
    }
    data = prepared(Given(texts, cache_dir=str(tmp_path), tokenizer=SentencePiece(280)))
    assert len(data.tokenizer.encode(["sat"])) < 3
    for unseen in ("zyx", "wvu"):
        assert len(data.tokenizer.encode([unseen])) >= 3
