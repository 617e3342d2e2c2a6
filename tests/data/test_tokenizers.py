"""Every string comes back exactly; training is the same bytes each time."""

import hashlib
import random

import pytest
import sentencepiece as spm

from datamodules.tokenizers import Bytes, SentencePiece
from llp.errors import SettingError

TEXT = "the cat sat on a mat and looked at another dog which did not move while birds were singing outside"
LINES = [" ".join(random.Random(i).choices(TEXT.split(), k=9)) + f" {i} .\n" for i in range(300)]
STRANGE = [
    "",
    "\n",
    " \n",
    "  two  spaces \n\n\ttab\r\n",
    "nul \0 and <0x41> <s> </s> <unk> <unknown> literally",
    "never seen: 日本語 😀 Ω ﬁ e\u0301 \u00e9 \u3000 \ufeff",
    "\u2581", "a\u2581b \u2581\u2581 c", " \u2581 \n",
]  # fmt: skip


@pytest.fixture(scope="module", params=["bpe", "unigram", "bytes"])
def tokenizer(request, tmp_path_factory):
    tokenizer = Bytes() if request.param == "bytes" else SentencePiece(330, model_type=request.param)
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.train(LINES, folder)
    tokenizer.load(folder)
    return tokenizer


@pytest.mark.parametrize("text", STRANGE)
def test_every_string_comes_back(tokenizer, text):
    tokens = tokenizer.encode(text.splitlines(keepends=True) or [""])
    assert tokenizer.decode(tokens) == text
    assert tokenizer.decode([tokenizer.start_token, *tokens]) == text
    assert tokenizer.start_token not in tokens
    assert all(0 <= token < tokenizer.vocab_size for token in tokens)


def test_unk_and_newline_are_one_token_each(tmp_path):
    tokenizer = SentencePiece(330)
    tokenizer.train(LINES, tmp_path)
    tokenizer.load(tmp_path)
    newline, unk = tokenizer.encode(["\n"]), tokenizer.encode(["<unk>"])
    assert len(newline) == len(unk) == 1
    text = tokenizer.encode(["the <unk> sat\n", "\n"])
    assert list(text).count(newline[0]) == 2
    assert list(text).count(unk[0]) == 1
    assert tokenizer._processor.unk_id() not in tokenizer.encode(["日本語"])


def test_a_given_model(tmp_path):
    SentencePiece(330).train(LINES, tmp_path)
    model = tmp_path / "tokenizer.model"
    given = SentencePiece(model_file=str(model))
    assert given.vocab_size == 330  # the model's own
    (tmp_path / "copy").mkdir()
    given.train([], tmp_path / "copy")
    given.load(tmp_path / "copy")
    assert given.decode(given.encode(LINES[:3])) == "".join(LINES[:3])
    assert given.fingerprint == hashlib.sha256(model.read_bytes()).hexdigest()
    with pytest.raises(SettingError, match="model_file = nowhere"):
        SentencePiece(model_file="nowhere")
    model.write_bytes(b"no model")
    with pytest.raises(SettingError, match="can't be read as a SentencePiece model"):
        SentencePiece(model_file=str(model))


def test_what_determines_a_tokenizer(tmp_path):
    """Beside the text: of a given model its content alone."""
    settings = SentencePiece(330, "unigram", 50, 7).settings()
    sizes = {"vocab_size": 330, "model_type": "unigram", "sample_lines": 50, "seed": 7}
    assert settings == {"tokenizer": "sentencepiece", **sizes}
    defaults = {"vocab_size": 32_000, "model_type": "bpe", "sample_lines": 500_000, "seed": 0}
    assert SentencePiece().settings() == {"tokenizer": "sentencepiece", **defaults}
    assert Bytes().settings() == {"tokenizer": "bytes"}
    SentencePiece(330).train(LINES, tmp_path)
    model = tmp_path / "tokenizer.model"
    digest = hashlib.sha256(model.read_bytes()).hexdigest()
    given = SentencePiece(model_file=str(model)).settings()
    assert given == {"tokenizer": "sentencepiece", "model_sha256": digest}


@pytest.mark.parametrize(("settings", "least"), [("vocab_size", 261), ("sample_lines", 1)])
def test_the_least_that_a_tokenizer_takes(settings, least):
    SentencePiece(**{settings: least})
    with pytest.raises(SettingError, match=f"tokenizer.{settings} = {least - 1}"):
        SentencePiece(**{settings: least - 1})


def test_a_given_model_that_changes_text_is_refused(tmp_path):
    path = tmp_path / "usual"
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_prefix=str(path), vocab_size=70, byte_fallback=False, minloglevel=2
    )
    with pytest.raises(SettingError, match="does not give every string back"):
        SentencePiece(model_file=f"{path}.model")


@pytest.mark.parametrize("settings", [{}, {"sample_lines": 50}, {"model_type": "unigram"}])
def test_training_gives_the_same_bytes(tmp_path, settings):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        SentencePiece(330, **settings).train(iter(LINES), tmp_path / name)
    first, second = ((tmp_path / name / "tokenizer.model").read_bytes() for name in ("first", "second"))
    assert first == second


def test_the_seed_draws_the_sample(tmp_path):
    lines = [f"{chr(97 + i % 26) * 5} {i * i} {chr(97 + i % 7)}{chr(97 + i % 11)}\n" for i in range(500)]
    fingerprints = set()
    for seed in (0, 1):
        tokenizer = SentencePiece(330, sample_lines=60, seed=seed)
        tokenizer.train(lines, tmp_path)
        tokenizer.load(tmp_path)
        fingerprints.add(tokenizer.fingerprint)
    assert len(fingerprints) == 2


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_a_vocabulary_that_the_text_does_not_support(tmp_path, model_type):
    with pytest.raises(SettingError, match=r"tokenizer\.init_args\.vocab_size = 50000: .*too high.*<= \d+"):
        SentencePiece(50_000, model_type=model_type).train(LINES, tmp_path)
    assert not list(tmp_path.iterdir())
