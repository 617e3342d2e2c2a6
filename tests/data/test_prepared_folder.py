"""A prepared folder: damage is noticed before a figure is computed, and a power cut leaves nothing half done."""

import json
import shutil

import numpy as np
import pytest

from datamodules import SentencePiece
from datamodules.token_files import TokenFile
from helpers.damage import flip
from helpers.prepared import attach, prepare
from llp.errors import SettingError

TOKENS = np.dtype(np.uint16)


@pytest.mark.parametrize("damage", ["cut", "no index", "broken index", "no tokens"])
def test_a_token_file_of_another_length_is_refused(wikitext, tmp_path, damage):
    folder = prepare(wikitext, tmp_path / "cache").prepared_folder()
    tokens, index = folder / "test.bin", folder / "test.jsonl"
    if damage == "cut":
        tokens.write_bytes(tokens.read_bytes()[:-2])
    elif damage == "no tokens":
        tokens.unlink()
    elif damage == "no index":
        index.unlink()
    else:
        index.write_text(index.read_text()[:-20])
    with pytest.raises(SettingError, match=r"cache_dir = .*test\.(bin|jsonl) is missing.*damaged.*; remove .*again"):
        TokenFile(folder, "test", TOKENS)


@pytest.mark.parametrize(
    ("file", "place", "loaders"),
    [
        ("test.bin", 0, ["test_dataloader", "predict_dataloader"]),
        ("test.jsonl", -10, ["test_dataloader"]),
        ("validation.bin", 7, ["val_dataloader"]),
        ("validation.jsonl", -10, ["val_dataloader"]),
    ],
)
def test_one_changed_byte_of_a_split_stops_whatever_scores_it(wikitext, tmp_path, file, place, loaders):
    folder = prepare(wikitext, tmp_path / "cache").prepared_folder()
    flip(folder / file, place)
    data = attach(prepare(wikitext, tmp_path / "cache"))
    whole = {"val_dataloader", "test_dataloader", "predict_dataloader", "train_dataloader"} - set(loaders)
    for loader in loaders:
        with pytest.raises(SettingError, match=rf"cache_dir = .*{file} has changed since .*; remove {folder},"):
            getattr(data, loader)()
    for loader in whole - {"test_dataloader", "predict_dataloader"}:
        assert next(iter(getattr(data, loader)())) is not None


def test_one_changed_byte_of_the_training_tokens_stops_the_unigram_model_and_a_run(wikitext, tmp_path):
    folder = prepare(wikitext, tmp_path / "cache").prepared_folder()
    flip(folder / "train.bin", 50)
    data = attach(prepare(wikitext, tmp_path / "cache", check_training_tokens=False))
    loader = data.test_dataloader()
    with pytest.raises(SettingError, match=r"train\.bin has changed since it was prepared"):
        loader.unigram_nats()
    assert len(data.train_dataloader()) == 10  # reading all of it can take a while
    data = attach(prepare(wikitext, tmp_path / "cache"))
    with pytest.raises(SettingError, match=r"train\.bin has changed since it was prepared"):
        data.train_dataloader()


@pytest.mark.parametrize("damage", ["cut", "fingerprint", "missing"])
def test_damage_to_the_description_itself_is_noticed(wikitext, tmp_path, damage):
    path = prepare(wikitext, tmp_path / "cache").prepared_folder() / "about.json"
    about = json.loads(path.read_text())
    if damage == "fingerprint":
        flip(path, path.read_text().index(about["data_fingerprint"]))
    elif damage == "missing":
        path.unlink()
    else:
        path.write_text(path.read_text()[:-9])
    with pytest.raises(SettingError, match=r"cache_dir = .*about\.json is missing or damaged; remove"):
        prepare(wikitext, tmp_path / "cache")


def test_damage_to_the_tokenizer_is_noticed(wikitext, tmp_path):
    settings = {"tokenizer": SentencePiece(320)}
    path = prepare(wikitext, tmp_path / "cache", **settings).prepared_folder() / "tokenizer.model"
    flip(path, path.read_bytes().index("\u2581".encode()) + 2)  # another character, as good a piece
    with pytest.raises(SettingError, match=r"tokenizer\.model is missing or damaged; remove"):
        prepare(wikitext, tmp_path / "cache", **settings)


def test_llp_test_and_context_report_nothing_of_changed_tokens(run, trained, work):
    shutil.rmtree(work / "cache")  # of the text of which the run is a copy
    assert run("prepare", "--config", "tiny.yaml")[0] == 0
    (folder,) = (work / "cache").iterdir()
    flip(folder / "test.bin", 100)
    for command in (("test",), ("context", "--split", "test")):
        status, out, err = run(*command, "--ckpt_path", trained / "checkpoints/last.ckpt")
        assert status == 1
        assert f"{folder}/test.bin has changed since it was prepared" in err
        assert f"remove {folder}, and the next run will prepare it again" in err
        assert "loss" not in out
    assert not (trained / "test.json").exists()
