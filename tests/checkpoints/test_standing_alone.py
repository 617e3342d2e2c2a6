"""A checkpoint needs nothing beside it: neither its run's folder, nor the text, the cache or the tokenizer's file."""

import shutil

import pytest
import torch

import llp
from llp.errors import SettingError

TOKENIZER = ("--data.init_args.tokenizer", "datamodules.SentencePiece")
SIZE = ("--data.init_args.tokenizer.init_args.vocab_size", 300)


@pytest.fixture
def run_with_sentence_piece(run, work):
    status, _, err = run("fit", "--config", "tiny.yaml", "--name", "run", *TOKENIZER, *SIZE)
    assert status == 0, err
    return work / "lightning_logs/run"


def perplexities(out: str) -> list[str]:
    return [line for line in out.splitlines() if line.startswith("test ")]


@pytest.fixture
def moved(run, run_with_sentence_piece, work):
    """The checkpoint alone in another folder, the text moved, the cache emptied; with the figures from before."""
    status, before, err = run("test", "--ckpt_path", run_with_sentence_piece)
    assert status == 0, err
    checkpoint = work / "moved/model.ckpt"
    checkpoint.parent.mkdir()
    (run_with_sentence_piece / "checkpoints/best.ckpt").rename(checkpoint)
    shutil.rmtree(work / "lightning_logs")
    shutil.rmtree(work / "cache")
    (work / "wikitext").rename(work / "elsewhere")
    return checkpoint, before


def test_a_text_that_has_changed_keeps_the_tokenizer(run, moved, work, monkeypatch):
    """Its training split is another now; nothing is trained on it."""
    monkeypatch.setattr("sentencepiece.SentencePieceTrainer.train", lambda **settings: 1 / 0)
    checkpoint, before = moved
    with (work / "elsewhere/wiki.train.tokens").open("a") as stream:
        stream.write(" one more line \n")
    for _ in range(2):
        status, out, err = run("test", "--ckpt_path", checkpoint, "--data.init_args.path", work / "elsewhere")
        assert status == 0, err
        # The model's own row; the unigram model's comes from the training split.
        assert perplexities(out) == perplexities(before)
    assert len(list((work / "cache").iterdir())) == 1  # prepared once


def test_a_given_tokenizer_may_be_gone(run, run_with_sentence_piece, work):
    given = work / "given.model"
    stored = torch.load(run_with_sentence_piece / "checkpoints/best.ckpt", weights_only=True)["tokenizer"]
    given.write_bytes(stored["data"].numpy().tobytes())
    flags = ("--data.init_args.tokenizer.init_args.model_file", given, "--trainer.max_steps", 4)
    assert run("fit", "--config", "tiny.yaml", "--name", "own", *TOKENIZER, *flags)[0] == 0
    given.unlink()
    status, _, err = run("test", "--ckpt_path", work / "lightning_logs/own")
    assert status == 0, err
    status, _, err = run("fit", "--name", "own", "--ckpt_path", "last", "--trainer.max_steps", 6)
    assert status == 0, err


def test_python_in_three_lines(run_with_sentence_piece, moved):
    checkpoint, _ = moved
    model = llp.load(checkpoint)
    text = "the cat sat\n on <unk> \u2581 mat 😀"
    losses = model.token_losses(text)
    generated = "".join(model.generate("the cat", max_tokens=20, seed=1))

    assert not model.module.training
    tokens = model.tokens(text)
    assert tokens[0, 0] == model.text.start_token
    assert len(losses) == tokens.shape[1] - 1
    assert model.text.tokenizer.decode(tokens[0].tolist()) == "\n" + text  # WikiText's stream starts with a newline
    with torch.no_grad():  # LLP: one pass over the whole text, by torch's own cross-entropy
        logits = model.module(tokens)[0, :-1]
    expected = torch.nn.functional.cross_entropy(logits, tokens[0, 1:], reduction="none")
    assert [loss.nats for loss in losses] == pytest.approx(expected.tolist(), rel=1e-5)
    assert "".join(loss.text for loss in losses if "\N{REPLACEMENT CHARACTER}" not in loss.text).startswith("the cat")
    assert generated == "".join(model.generate("the cat", max_tokens=20, seed=1))
    assert generated


def test_what_can_not_be_loaded_is_one_error(trained, tmp_path):
    with pytest.raises(SettingError, match="there is no such file"):
        llp.load(tmp_path / "nowhere")
    (tmp_path / "empty/checkpoints").mkdir(parents=True)
    with pytest.raises(SettingError, match="there is no intact checkpoint"):
        llp.load(tmp_path / "empty")
    path = trained / "checkpoints/best.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    torch.save({**checkpoint, "tokenizer": None}, path)
    with pytest.raises(SettingError, match="no tokenizer, because it was not trained on text; load one that was"):
        llp.load(path).token_losses("a")
    torch.save({**checkpoint, "architecture": "no_such_module.Model"}, path)
    with pytest.raises(SettingError, match=r"no_such_module\.Model: .*PYTHONPATH"):
        llp.load(path)
