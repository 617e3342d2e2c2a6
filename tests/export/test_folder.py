"""What `llp export` writes, and what llp itself makes of it."""

import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch.distributed import checkpoint as distributed_checkpoint

from helpers import exported, small_models
from helpers.refusals import assert_one_message
from llp import loading
from llp.checkpoints.consolidation import consolidate
from llp.decoder.patterns import CausalAttention, Layer
from llp.errors import SettingError
from llp.export import model_folder, modeling_file
from llp.export.layers import described, geometry_of
from llp.export.model_folder import write_folder
from llp.language_model import LanguageModel

TOKENS = torch.arange(30)[None]


@pytest.fixture
def saved(tmp_path):
    return exported.save(tmp_path / "a.ckpt", exported.small("LLP"))


@pytest.fixture
def folder(saved):
    write_folder(saved, saved.with_name("export"))
    return saved.with_name("export")


def test_export_and_back(run, trained, caplog):
    """The metrics of an exported folder are those of its checkpoint, in its card and in its own report."""
    best = trained / "checkpoints/best.ckpt"
    assert run("test", "--ckpt_path", trained)[0] == 0
    report = (trained / "test.json").read_text()
    status, out, _ = run("export", "--ckpt_path", trained, "--output", "out")
    assert status == 0
    assert "tokenizer.json gives the tokens of llp's own tokenizer" in out
    status, out, _ = run("test", "--ckpt_path", "out")
    assert (status, "WEIGHTS CHANGED" in out) == (0, False)
    again = json.loads(Path("out/test.json").read_text())
    assert again["rows"] == json.loads(report)["rows"]
    assert again["protocol"]["exported"]["checkpoint_sha256"] == json.loads(report)["protocol"]["checkpoint_sha256"]
    assert not again["protocol"]["exported"]["weights_changed"]
    assert (trained / "test.json").read_text() == report
    check_card(Path("out/README.md").read_text(), json.loads(report))
    ours, theirs = (run("generate", "--ckpt_path", path, "--prompt", "the cat", "--seed", 3) for path in (best, "out"))
    assert theirs[:2] == ours[:2]

    assert_one_message(run("export", "--ckpt_path", trained, "--output", "out"), "output = out: it exists already")
    assert_one_message(run("export", "--ckpt_path", "out", "--output", "b"), "this folder was exported already")
    assert_one_message(run("fit", "--ckpt_path", "out"), "with --init_from out")
    assert_one_message(run("consolidate", "out"), "there is no such folder; give that of a sharded checkpoint")
    status, _, err = run("fit", "--config", "tiny.yaml", "--init_from", "out", "--trainer.max_steps", 1)
    assert status == 0, err

    weights = load_file("out/model.safetensors")
    weights["decoder.final_norm.weight"] += 1
    save_file(weights, "out/model.safetensors", {"format": "pt"})
    status, out, _ = run("test", "--ckpt_path", "out")
    assert status == 0
    assert "WEIGHTS CHANGED" in out
    assert "WEIGHTS CHANGED" in caplog.text
    changed = json.loads(Path("out/test.json").read_text())
    assert changed["protocol"]["exported"]["weights_changed"]
    assert changed["rows"] != again["rows"]


def check_card(card, report):
    assert yaml.safe_load(card.split("---\n")[1])["library_name"] == "transformers"
    row, protocol = report["rows"][0], report["protocol"]
    assert f"| perplexity per word | {row['word_perplexity']:,.4f} |" in card
    assert f"Words counted: {row['words']:,}, {protocol['word_count']}" in card
    assert f"windows of {protocol['window_len']} tokens, stride {protocol['stride']}" in card


def test_card_has_no_metrics_of_another_checkpoint(run, trained):
    assert run("test", "--ckpt_path", trained / "checkpoints/best.ckpt")[0] == 0
    report = json.loads((trained / "test.json").read_text())
    report["protocol"]["checkpoint_sha256"] = "0" * 64
    (trained / "test.json").write_text(json.dumps(report))
    assert_one_message(run("export", "--ckpt_path", trained), "test.json: it is damaged")
    assert not (trained / "export").exists()
    del report["own_sha256"]
    (trained / "test.json").write_text(json.dumps(report))
    assert run("export", "--ckpt_path", trained)[0] == 0
    assert "None of this checkpoint" in (trained / "export/README.md").read_text()


@pytest.mark.parametrize("form", [("LLP", {"tie_embeddings": True}), ("CompressedAttention", {})], ids=str)
def test_loads_as_its_checkpoint_does(tmp_path, form):
    path = exported.save(tmp_path / "a.ckpt", exported.small(form[0], **form[1]))
    write_folder(path, tmp_path / "export")
    ours, theirs = loading.load(path), loading.load(tmp_path / "export")
    with torch.no_grad():
        assert torch.equal(theirs.module(TOKENS[:, :16]), ours.module(TOKENS[:, :16]))
    assert theirs.text.window == ours.text.window
    theirs, ours = theirs.module, ours.module
    assert theirs.trained == ours.trained
    assert dict(theirs.hparams) == dict(ours.hparams)
    assert theirs.exported == {**theirs.exported, "weights_changed": False}
    assert ("decoder.head.weight" in load_file(tmp_path / "export/model.safetensors")) == (form[0] != "LLP")


@pytest.mark.parametrize(("name", "settings"), small_models.FORMS, ids=str)
def test_the_layers_come_back_from_the_configuration(name, settings):
    geometry = exported.small(name, **settings).geometry
    layers = json.loads(json.dumps([described(layer) for layer in geometry.layers]))
    compression = None if geometry.compression is None else asdict(geometry.compression)
    assert geometry_of(layers, geometry.n_heads, compression, False) == geometry


def test_numbers_of_another_type(saved):
    write_folder(saved, saved.with_name("half"), "bfloat16")
    ours, theirs = loading.load(saved).module, loading.load(saved.with_name("half")).module
    for name, weight in ours.state_dict().items():
        assert torch.equal(theirs.state_dict()[name], weight.bfloat16().float()), name
    config = json.loads(saved.with_name("half").joinpath("config.json").read_text())
    assert config["dtype"] == "bfloat16"
    assert not theirs.exported["weights_changed"]
    with pytest.raises(SettingError, match=r"^dtype = int8: choose float32, bfloat16, float16$"):
        write_folder(saved, saved.with_name("eighth"), "int8")


@pytest.fixture
def sharded(saved):
    """The same checkpoint in shards."""
    path, checkpoint = saved.with_name("sharded.ckpt"), torch.load(saved)
    distributed_checkpoint.save({"state_dict": checkpoint.pop("state_dict")}, checkpoint_id=path)
    torch.save(checkpoint, path / "meta.pt")
    return path


def test_sharded_checkpoint(sharded, folder):
    whole = sharded.with_name("whole")
    write_folder(sharded, whole)
    for name in ("model.safetensors", "config.json"):
        assert whole.joinpath(name).read_bytes() == (folder / name).read_bytes()
    assert {path.name for path in whole.iterdir()} == {path.name for path in folder.iterdir()}


def test_one_file_of_a_sharded_checkpoint_or_nothing(saved, sharded, monkeypatch):
    def fail(descriptor):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="No space"):
            consolidate(sharded)
    assert set(saved.parent.iterdir()) == {saved, sharded}
    path = consolidate(sharded)
    assert set(saved.parent.iterdir()) == {saved, sharded, path}
    weights = torch.load(path)["state_dict"]
    for name, weight in torch.load(saved)["state_dict"].items():
        assert torch.equal(weights[name], weight), name


def rename_tensor(folder):
    weights = load_file(folder / "model.safetensors")
    weights["decoder.norm.weight"] = weights.pop("decoder.final_norm.weight")
    save_file(weights, folder / "model.safetensors")


def cut_weights(folder):
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-1])


def change_argument(folder):
    config = json.loads((folder / "config.json").read_text())
    config["patterns"][2]["arguments"]["segment_len"] = 3
    (folder / "config.json").write_text(json.dumps(config))


def change_tokenizer(folder):
    spec = json.loads((folder / "tokenizer.json").read_text())
    spec["model"]["vocab"]["<0x61>"], spec["model"]["vocab"]["<0x62>"] = 98, 97
    (folder / "tokenizer.json").write_text(json.dumps(spec))


CHANGES = {
    rename_tensor: r"decoder\.final_norm\.weight is None there, and \[16\] in the model",
    cut_weights: r"model\.safetensors: can't be read",
    change_argument: r"config\.json: patterns: changed since the export",
    change_tokenizer: r"tokenizer\.json: missing, or changed since the export",
    lambda folder: (folder / "config.json").unlink(): r"config\.json: missing",
    lambda folder: (folder / "llp.json").write_text("{"): r"llp\.json: it is damaged",
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_folder_is_refused(folder, change):
    change(folder)
    with pytest.raises(SettingError, match=CHANGES[change]):
        loading.load(folder)


def test_nothing_but_an_architecture_is_made(folder):
    """Who writes the file decides on a name and on arguments: they call nothing else."""
    record = json.loads((folder / "llp.json").read_text())
    for architecture in ("subprocess.Popen", "os.mkdir", "torch.nn.Linear"):
        (folder / "llp.json").write_text(json.dumps({**record, "architecture": architecture}))
        with pytest.raises(SettingError, match=rf"^class_path = {architecture}: it is no TrainingModule;"):
            loading.load(folder)


class Foreign(LanguageModel):
    pattern: CausalAttention

    def layers(self):
        return [Layer(self.pattern)]


@pytest.mark.parametrize("name", ["MyAttention", "CausalAttention"])  # a known name is not enough
def test_a_foreign_pattern_is_refused_by_name(tmp_path, monkeypatch, name):
    monkeypatch.setattr(Foreign, "pattern", type(name, (CausalAttention,), {})(), raising=False)
    model = Foreign(vocab_size=257, dim=8, n_heads=2, n_layers=1)
    model.configure_model()
    path = exported.save(tmp_path / "a.ckpt", model)
    with pytest.raises(SettingError, match=rf"^pattern = {name}: only these can be exported.* CausalAttention, "):
        write_folder(path, tmp_path / "export")
    assert [*tmp_path.iterdir()] == [path]


def test_whole_or_not_at_all(saved, monkeypatch):
    def fail():
        raise OSError("the disk is full")

    monkeypatch.setattr(model_folder, "modeling_source", fail)
    with pytest.raises(OSError, match="the disk is full"):
        write_folder(saved, saved.with_name("export"))
    assert [*saved.parent.iterdir()] == [saved]


def test_the_code_needs_nothing_of_llp_and_each_name_has_one_meaning():
    imported = exported.imported_by(modeling_file.modeling_source())
    assert {"torch", "transformers"} < imported
    assert imported - {"torch", "transformers"} <= set(sys.stdlib_module_names)
