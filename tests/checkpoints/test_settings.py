"""The settings of a resumed run: what can change takes effect, is reported and stored; the rest is refused by name."""

import inspect
import shutil
from pathlib import Path

import pytest
import torch
import yaml

import llp
from datamodules import WikiText103
from helpers.in_process import call
from helpers.runs import curves
from llp.language_model import LanguageModel
from llp.optimization import cosine, halving
from llp.training_module import TrainingModule

# Another value for each setting of `tiny.yaml`'s model, data and seed. A new setting must be entered here.
MODEL_FIXED = {
    "dim": 32, "n_layers": 3, "n_heads": 4, "mlp_ratio": 2, "rotary_base": 100.0, "tie_embeddings": True,
    "share_key_value": True, "rotary_first_layer_only": True, "initialization": "torch", "segment_len": 4,
}  # fmt: skip
MODEL_CHANGEABLE = {
    "dropout": 0.25, "activation_checkpointing": True, "compile": False, "learning_rate": 0.002, "betas": [0.5, 0.6],
    "weight_decay": 0.3, "schedule": "cosine", "warmup_steps": 3, "final_learning_rate": 0.5, "halve_every": 2,
}  # fmt: skip
DATA_FIXED = {"window_len": 24, "train_stride": 8}
DATA_CHANGEABLE = {"batch_size": 3, "scoring_window_len": 40, "scoring_stride": 8, "check_training_tokens": True}
LEFT_OUT = {
    "kwargs",
    "vocab_size",
    "key_value_norm",
    "seed",
}  # the data's; needs share_key_value; that of `seed_everything`


def test_every_setting_is_tried_here():
    classes = TrainingModule, LanguageModel
    names = {name for cls in classes for name in inspect.signature(cls).parameters} | {"segment_len"}
    assert names - LEFT_OUT == MODEL_FIXED.keys() | MODEL_CHANGEABLE.keys()
    assert llp.LLP.changeable_settings == MODEL_CHANGEABLE.keys()
    assert WikiText103.changeable_settings == DATA_CHANGEABLE.keys()


@pytest.fixture(scope="module")
def half_once(finished):
    """A run of four steps, which is trained once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(finished)
        shutil.rmtree("lightning_logs/half", ignore_errors=True)  # mutation testing runs the tests twice in a process
        flags = ("--trainer.max_steps", 4, "--name", "half", "--model.init_args.warmup_steps", 2)
        assert call("fit", "--config", "tiny.yaml", *flags) == 0
    return finished / "lightning_logs/half"


@pytest.fixture
def half(half_once, work):
    """A copy of it, on the text and the cache of the original."""
    return Path(shutil.copytree(half_once, work / "lightning_logs/run"))


def resume(run, *flags):
    return run("fit", "--name", "run", "--ckpt_path", "last", "--trainer.max_steps", 6, *flags)


@pytest.mark.parametrize(("name", "value"), [("model.init_args.rotary_base", 100.0), ("seed_everything", 7)])
def test_what_can_not_change_is_refused_by_name(run, half, name, value):
    before = {path: path.read_bytes() for path in half.rglob("*") if path.is_file()}
    status, _, err = resume(run, f"--{name}", value)
    assert status == 1
    assert name.rpartition(".")[2] in err
    assert "Traceback" not in err
    assert {path: path.read_bytes() for path in half.rglob("*") if path.is_file()} == before


def learning_rates(settings, steps):
    """From `optimization`, which `test_optimization.py` compares with the formulas."""
    names = ("warmup_steps", "halve_every", "final_learning_rate", "learning_rate")
    warmup, halve_every, floor, rate = (settings[name] for name in names)
    is_cosine = settings["schedule"] == "cosine"
    return [
        rate * (cosine(step, warmup, 6, floor) if is_cosine else halving(step, warmup, halve_every)) for step in steps
    ]


def test_what_can_change_takes_effect_and_is_kept(run, half, caplog):
    caplog.set_level("INFO")
    last = half / "checkpoints/last.ckpt"
    before = torch.load(last, weights_only=True)
    wanted = {f"model.init_args.{name}": value for name, value in MODEL_CHANGEABLE.items()}
    wanted |= {f"data.init_args.{name}": value for name, value in DATA_CHANGEABLE.items()}
    status, _, err = resume(run, *(f"--{name}={value}" for name, value in wanted.items()))
    assert status == 0, err
    checkpoint = torch.load(last, weights_only=True)

    # The records: hyperparameters, history and configuration all say so, and it is said on the screen.
    settings = checkpoint["hyper_parameters"]
    stored = {f"model.init_args.{name}": value for name, value in settings.items()}
    stored |= {f"data.init_args.{name}": value for name, value in checkpoint["datamodule_hyper_parameters"].items()}
    assert {name: plain(stored[name]) for name in wanted} == wanted
    for config in ((half / "config.yaml").read_text(), checkpoint["config"]):
        sections = yaml.safe_load(config)
        assert {name: sections[name.split(".")[0]]["init_args"][name.split(".")[2]] for name in wanted} == wanted
    start, later = checkpoint["settings_history"]
    changed = {name: value for name, value in wanted.items() if start["settings"][name] != value}
    assert later == {"step": 5, "settings": {**changed, "trainer.max_steps": 6}}
    assert len(changed) > 8
    for name, value in changed.items():
        short = name.rpartition(".")[2]
        assert f"{short} {start['settings'][name]} -> {value} from step 5" in caplog.messages

    # What was done: the optimizer's groups, the learning rate of each step, the windows taken.
    decaying, other = checkpoint["optimizer_states"][0]["param_groups"]
    assert (decaying["weight_decay"], other["weight_decay"]) == (0.3, 0)
    assert [tuple(group["betas"]) for group in (decaying, other)] == [(0.5, 0.6)] * 2
    logged = dict(curves(half)["train/learning_rate"])
    old = learning_rates(before["hyper_parameters"], range(4))
    assert [logged[step] for step in range(4)] == pytest.approx(old, rel=1e-6)
    assert [logged[step] for step in (4, 5)] == pytest.approx(learning_rates(settings, (4, 5)), rel=1e-6)
    (rate,) = learning_rates(settings, [6])
    assert [group["lr"] for group in (decaying, other)] == pytest.approx([rate] * 2, rel=1e-12)
    assert checkpoint["WikiText103"]["samples_taken"] == 4 * 4 + 2 * 3


def plain(value):
    return list(value) if isinstance(value, tuple) else value


def test_another_text_is_refused_on_a_resume(run, half, work):
    """The training order is a function of the text: a changed text would be another run."""
    with (work / "wikitext/wiki.train.tokens").open("a") as stream:
        stream.write(" one more line \n")
    status, _, err = resume(run, "--data.init_args.path", work / "wikitext")
    assert status == 1
    assert "data_fingerprint" in err
    assert "--init_from" in err
