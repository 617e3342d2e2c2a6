"""A model of transformers as a LightningModule: trained, resumed, scored, continued."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch.distributed import checkpoint as distributed_checkpoint
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

import llp
from helpers import exported
from helpers.refusals import assert_one_message
from llp.decoder.patterns import SegmentAttention
from llp.errors import SettingError
from llp.export.pretrained_folder import merge_adapters
from llp.hf import set_attention
from llp.hf.decoder import logit_scale

SIZE = {"vocab_size": 257, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4}
CONFIG = {**SIZE, "num_key_value_heads": 2, "intermediate_size": 24, "max_position_embeddings": 64}
SEGMENTS = {"class_path": "llp.SegmentAttention", "init_args": {"segment_len": 8}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small Llama with random weights."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("llama")
    LlamaForCausalLM(LlamaConfig(**CONFIG)).save_pretrained(path)
    return path


@pytest.fixture
def config(work, folder):
    """A configuration of a run, `pretrained.yaml`, which may be changed by its caller; returns its settings."""
    settings = yaml.safe_load((work / "tiny.yaml").read_text())
    settings["model"] = {
        "class_path": "llp.PretrainedModel",
        "init_args": {
            "path": str(folder),
            "pattern": SEGMENTS,
            "keep_first": 2,
            "learning_rate": 1e-2,
            "schedule": "halving",
        },
    }
    settings["model"]["init_args"]["lora"] = {"rank": 2, "targets": ["q_proj", "v_proj"], "also_train": ["norm"]}
    (work / "pretrained.yaml").write_text(yaml.safe_dump(settings))
    return settings


def built(folder, **settings):
    model = llp.PretrainedModel(path=str(folder), **{"pattern": SEGMENTS, "keep_first": 2, **settings})
    model.configure_model()
    return model.double().eval()


def test_losses_are_those_of_the_model_itself(folder):
    tokens = torch.randint(256, (2, 33), generator=torch.Generator().manual_seed(1))
    theirs = AutoModelForCausalLM.from_pretrained(folder).double().eval()
    set_attention(theirs, SegmentAttention(8), keep_first=2)
    logits = theirs(tokens[:, :-1]).logits
    expected = torch.nn.functional.cross_entropy(logits.mT, tokens[:, 1:], reduction="none")
    decoder = built(folder).decoder
    torch.testing.assert_close(decoder.loss(tokens[:, :-1], tokens[:, 1:]).each, expected)
    torch.testing.assert_close(decoder(tokens[:, :-1]), logits)
    positions = torch.tensor([[3, 20], [7, 31]])
    torch.testing.assert_close(decoder(tokens[:, :-1], positions), logits.take_along_dim(positions[..., None], 1))


@pytest.mark.parametrize(("family", "settings"), [("granite", {"logits_scaling": 4.0}), ("phi", {})])
def test_a_scale_of_the_logits_and_a_bias_of_the_head_count(family, settings):
    config = {"model_type": family, **CONFIG, **settings}
    model = llp.PretrainedModel(config=config, from_scratch=True, pattern=SEGMENTS)
    model.configure_model()
    model.eval()
    tokens = torch.randint(256, (2, 33), generator=torch.Generator().manual_seed(1))
    if family == "phi":
        torch.nn.init.normal_(model.decoder.model.lm_head.bias)
    with torch.no_grad():
        logits = model.decoder.model(tokens[:, :-1], use_cache=False).logits
        losses = model.decoder.loss(tokens[:, :-1], tokens[:, 1:]).each
        torch.testing.assert_close(model(tokens[:, :-1]), logits)
    torch.testing.assert_close(losses, torch.nn.functional.cross_entropy(logits.mT, tokens[:, 1:], reduction="none"))


@pytest.mark.parametrize("n_layers", [5, 6])
def test_the_same_layers_are_dense_as_in_an_architecture_of_ours(n_layers):
    own = llp.LLP(257, dim=16, n_heads=4, n_layers=n_layers, segment_len=8, dense_every=3)
    config = {"model_type": "llama", **CONFIG, "num_hidden_layers": n_layers}
    model = llp.PretrainedModel(config=config, from_scratch=True, pattern=SEGMENTS, keep_first=0, dense_every=3)
    expected = [number for number, layer in enumerate(own.layers()) if isinstance(layer.pattern, SegmentAttention)]
    assert model.local_layers == expected


@pytest.mark.parametrize("pattern", [SEGMENTS, None])
@pytest.mark.parametrize("window", [None, (16, 8)])
def test_pieces_and_rows_give_what_the_windows_give(folder, pattern, window):
    model = built(folder, pattern=pattern)
    tokens = torch.randint(256, (2, 40), generator=torch.Generator().manual_seed(2))
    cache = model.new_cache(2, window)
    found = torch.cat([model.extend(piece, cache)[0] for piece in tokens.split((1, 9, 2, 1, 20, 7), dim=1)], dim=1)
    if window is None:
        torch.testing.assert_close(found, model(tokens))
    for end in range(1, 41) if window else ():
        start = max(0, -(-end // 8) * 8 - 16)
        torch.testing.assert_close(found[:, end - 1], model(tokens[:, start:end])[:, -1])


def test_rows_of_a_cache_can_be_chosen(folder):
    model = built(folder)
    tokens = torch.randint(256, (2, 21), generator=torch.Generator().manual_seed(3))
    cache = model.new_cache(2)
    model.extend(tokens[:, :20], cache)
    cache.select([1, 1])
    logits, _ = model.extend(tokens[1:, 20:].expand(2, 1), cache)
    torch.testing.assert_close(logits[:, 0], model(tokens)[1:, -1].expand(2, -1))


def test_adapters_of_random_weights_are_stored_with_them():
    settings = {"config": {"model_type": "llama", **CONFIG}, "from_scratch": True, "lora": {"rank": 2}}
    one, other, tokens = llp.PretrainedModel(**settings), llp.PretrainedModel(**settings), torch.arange(20)[None]
    expected = one(tokens)
    other.load_state_dict(one.state_dict())
    assert torch.equal(other(tokens), expected)


def test_a_logit_scale_is_found_and_a_soft_cap_refused():
    from transformers import AutoConfig

    granite = AutoModelForCausalLM.from_config(AutoConfig.for_model("granite", **CONFIG, logits_scaling=4.0))
    assert logit_scale(granite) == pytest.approx(0.25)
    capped = AutoConfig.for_model("gemma2", **CONFIG, head_dim=4, final_logit_softcapping=0.01)
    with pytest.raises(SettingError, match="soft cap"):
        logit_scale(AutoModelForCausalLM.from_config(capped))


def test_a_run_of_adapters(run, work, config, folder):
    """Its checkpoint holds what was trained; it is tested, continued and resumed, bit for bit."""
    assert run("fit", "--config", "pretrained.yaml", "--name", "whole")[0] == 0
    last = torch.load(work / "lightning_logs/whole/checkpoints/last.ckpt", weights_only=True)
    assert {name.rpartition(".")[2] for name in last["state_dict"]} == {"weight"}
    assert all("lora_" in name or "norm" in name for name in last["state_dict"])
    assert last["base"] is not None
    (part, resumed) = ("fit", "--config", "pretrained.yaml", "--name", "part", "--trainer.max_steps", 3), ("fit",)
    assert run(*part)[0] == 0
    checkpoint = work / "lightning_logs/part/checkpoints/last.ckpt"
    status, _, err = run(*resumed, "--ckpt_path", checkpoint, "--name", "resumed", "--trainer.max_steps", 6)
    assert status == 0, err
    again = torch.load(work / "lightning_logs/resumed/checkpoints/last.ckpt", weights_only=True)
    for name, weight in last["state_dict"].items():
        assert torch.equal(weight, again["state_dict"][name]), name
    status, _, err = run("test", "--ckpt_path", work / "lightning_logs/whole")
    assert status == 0, err
    assert run("generate", "--ckpt_path", work / "lightning_logs/whole", "--max_tokens", 8)[0] == 0


def test_adapters_on_another_base_are_refused(run, work, config, folder, tmp_path):
    assert run("fit", "--config", "pretrained.yaml", "--name", "run", "--trainer.max_steps", 2)[0] == 0
    other = shutil.copytree(folder, tmp_path / "other")
    torch.manual_seed(1)
    LlamaForCausalLM(LlamaConfig(**CONFIG)).save_pretrained(other)
    result = run("test", "--ckpt_path", work / "lightning_logs/run", "--model.init_args.path", other)
    assert_one_message(result, "other weights", status=result[0])
    assert result[0] != 0


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"path": "nowhere"}, "model.init_args.path"),
        ({"lora": {"targets": ["w_q"]}}, "lora.targets"),
        ({"lora": {"also_train": ["bias"]}}, "lora.also_train"),
        ({"pattern": {"class_path": "llp.SegmentAttention", "init_args": {"length": 8}}}, "'length'"),
        ({"pattern": {"class_path": "llp.LLP"}}, "subclass of AttentionPattern"),
        ({"keep_first": -1}, "keep_first"),
        ({"dense_every": 1}, "dense_every"),
        ({"path": None}, "model.init_args.path"),
    ],
)
def test_bad_settings_are_named(run, work, config, settings, named):
    config["model"]["init_args"] |= settings
    (work / "bad.yaml").write_text(yaml.safe_dump(config))
    result = run("fit", "--config", "bad.yaml")
    assert result[0] != 0
    assert_one_message(result, named, status=result[0])


def test_an_untrained_model_is_tested_without_a_checkpoint(run, work, config):
    status, _, err = run("test", "--config", "pretrained.yaml", "--data.init_args.window_len", 64)
    assert status == 0, err
    assert "Loading weights" not in err  # a bar is for a terminal
    assert "were trained on" not in err
    text = (work / "wikitext/wiki.test.tokens").read_bytes()
    assert json.loads((work / "test.json").read_text())["rows"][0]["tokens"] == len(text)


@pytest.mark.parametrize(("pattern", "warned"), [(None, True), (SEGMENTS, False)])
def test_dense_layers_beyond_the_trained_length_are_warned_of(folder, pattern, warned, recwarn, monkeypatch):
    model = llp.PretrainedModel(path=str(folder), pattern=pattern)
    monkeypatch.setattr(llp.PretrainedModel, "data", SimpleNamespace(window_len=65))
    model.setup("fit")
    text = "data.init_args.window_len = 65: the dense layers were trained on 64 tokens"
    assert any(text in str(one.message) for one in recwarn) == warned


def test_the_shipped_configuration_trains_any_folder(run, work, config, folder):
    (work / "data.yaml").write_text(yaml.safe_dump({"data": config["data"], "trainer": config["trainer"]}))
    small = ("--model.init_args.pattern.init_args.segment_len", 8, "--trainer.max_steps", 1)
    files = ("--config", "configs/model/pretrained.yaml", "--model.init_args.path", folder, "--config", "data.yaml")
    status, _, err = run("fit", *files, *small)
    assert status == 0, err


def test_from_scratch_needs_no_folder(run, work, config):
    config["model"]["init_args"] |= {"path": None, "lora": None, "from_scratch": True, "keep_first": 0}
    config["data"]["init_args"]["window_len"] = 64
    config["model"]["init_args"]["config"] = {"model_type": "qwen3", **CONFIG, "head_dim": 8}
    (work / "scratch.yaml").write_text(yaml.safe_dump(config))
    status, _, err = run("fit", "--config", "scratch.yaml", "--name", "scratch")
    assert status == 0, err
    status, _, err = run("test", "--ckpt_path", "lightning_logs/scratch")  # in one pass: the pattern has a reach
    assert status == 0, err
    loaded = llp.load(work / "lightning_logs/scratch")
    assert loaded.module.transformers_config.model_type == "qwen3"
    assert len(loaded.token_losses("some text")) == 9


@pytest.mark.parametrize("plain", [False, True])
def test_an_exported_folder_is_the_model(run, work, config, plain):
    """With its attention by the code that travels along, bit for bit; or plain, for dense attention."""
    assert run("fit", "--config", "pretrained.yaml", "--name", "run", "--trainer.max_steps", 2)[0] == 0
    status, _, err = run("export", "--ckpt_path", "lightning_logs/run", "--output", "out", *["--plain"] * plain)
    assert status == 0, err
    tokens = torch.randint(256, (1, 40), generator=torch.Generator().manual_seed(4))
    module = llp.load(work / "lightning_logs/run").module
    merge_adapters(module)
    if plain:
        set_attention(module.decoder.model, None)
    opened = AutoModelForCausalLM.from_pretrained("out", trust_remote_code=not plain)
    assert torch.equal(opened(tokens, use_cache=False).logits, module(tokens))
    assert (work / "out/modeling_llp.py").exists() is not plain
    assert (work / "out/model.safetensors").stat().st_mode & 0o777 == 0o644  # for colleagues, too
    if not plain:
        imported = exported.imported_by((work / "out/modeling_llp.py").read_text())
        assert not {"llp", "datamodules", "peft", "lightning"} & imported
        mask = torch.ones_like(tokens)
        generated = opened.generate(tokens, attention_mask=mask, max_new_tokens=20, do_sample=False, pad_token_id=0)
        assert torch.equal(generated[:, 40:], opened(generated).logits[:, 39:-1].argmax(-1))


def test_what_was_exported_with_its_attention_can_be_exported_plain(run, work, config):
    base = config["model"]["init_args"]["path"]
    for path, output, options in ((base, "out", []), ("out", "plain", ["--plain"])):
        settings = ("--config", "pretrained.yaml", "--model.init_args.path", path, "--trainer.max_steps", 1)
        assert run("fit", *settings, "--name", output)[0] == 0
        assert run("export", "--ckpt_path", f"lightning_logs/{output}", "--output", output, *options)[0] == 0
    assert [("modeling_llp" in (work / one / "config.json").read_text()) for one in ("out", "plain")] == [True, False]


def test_a_sharded_checkpoint_is_exported_like_a_whole_one(run, work, config):
    assert run("fit", "--config", "pretrained.yaml", "--name", "run", "--trainer.max_steps", 2)[0] == 0
    whole, sharded = work / "lightning_logs/run/checkpoints/last.ckpt", work / "sharded.ckpt"
    checkpoint = torch.load(whole, weights_only=True)
    weights = checkpoint.pop("state_dict")
    distributed_checkpoint.save({"state_dict": weights}, checkpoint_id=sharded)
    torch.save(checkpoint, sharded / "meta.pt")
    for path, output in ((whole, "a"), (sharded, "b")):
        status, _, err = run("export", "--ckpt_path", path, "--output", output)
        assert status == 0, err
    written = [{path.name: path.read_bytes() for path in (work / output).iterdir()} for output in "ab"]
    assert written[0] == written[1]
