"""What a tokenizer is trained on, what its name is made of, and which given model is refused."""

import pytest

from datamodules import SentencePiece
from helpers.corpus import DOCUMENTS, Given

WORDS = ["cat", "sat", "mat", "dog", "bird", "outside", "singing", "moved"]


def trained(lines, folder, **settings):
    tokenizer = SentencePiece(**{"vocab_size": 300, **settings})
    tokenizer.train(lines, folder)
    tokenizer.load(folder)
    return tokenizer


@pytest.mark.parametrize("model_type", ["bpe", "unigram"])
def test_indentation_is_learnt(tmp_path, model_type):
    """Lines come as they are, and pieces of spaces alone are allowed: eight spaces become one token or two."""
    lines = [f"        {word} {word}\n" for word in WORDS * 30]
    tokenizer = trained(lines, tmp_path, vocab_size=280, model_type=model_type)
    assert len(tokenizer.encode(["        "])) <= 2
    assert len(tokenizer.encode([lines[0]])) < 8


def test_long_lines_are_learnt_from(tmp_path):
    """A paragraph is a line: SentencePiece would leave out those of more than 4,192 bytes without a word."""
    lines = [" ".join(WORDS[i % 8 :] + WORDS[: i % 8]) * 200 + "\n" for i in range(8)]
    assert min(map(len, lines)) > 8000
    tokenizer = trained(lines, tmp_path, vocab_size=330)
    assert len(tokenizer.encode(["singing"])) <= 2


def test_training_reads_the_training_split_alone(tmp_path):
    texts = {
        "train": {"a": "cat sat on the mat\n" * 99},
        "validation": {"c": "zyx\n" * 99},
        "test": {"e": "wvu\n" * 99},
    }
    data = Given(texts, cache_dir=str(tmp_path), tokenizer=SentencePiece(280), window_len=4)
    data.prepare_data()
    data.setup("fit")
    assert len(data.tokenizer.encode(["sat"])) < 3
    for unseen in ("zyx", "wvu"):
        assert len(data.tokenizer.encode([unseen])) >= 3


def test_each_setting_makes_a_tokenizer_of_its_own(tmp_path):
    """None takes what another has prepared."""
    settings = [{}, {"vocab_size": 301}, {"model_type": "unigram"}, {"sample_lines": 5}, {"seed": 1}]
    tokenizers = [SentencePiece(**{"vocab_size": 300, **changed}) for changed in settings]
    folders = {Given(DOCUMENTS, cache_dir=str(tmp_path), tokenizer=t).prepared_folder() for t in tokenizers}
    assert len(folders) == len(settings)
