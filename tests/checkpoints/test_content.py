"""What a checkpoint says of itself and what is compared with it, each record by hand; a run's settings likewise."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
import torch.distributed.checkpoint as sharding

import llp
from datamodules import Bytes
from helpers.small_models import OWN_SETTINGS, SIZES, build
from llp import checkpoints
from llp.checkpoints import reading, settings_history
from llp.errors import SettingError


@pytest.fixture
def package(monkeypatch):
    """A package `outer` that re-exports `Public` of `outer.inner.deep`, and not `Hidden`."""
    for name in ("outer", "outer.inner", "outer.inner.deep"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    deep = sys.modules["outer.inner.deep"]
    for name in ("Public", "Hidden", "Shadowed"):
        setattr(deep, name, type(name, (), {"__module__": deep.__name__}))
    sys.modules["outer.inner"].Public = sys.modules["outer"].Public = deep.Public
    sys.modules["outer"].Shadowed = object()  # another thing of that name
    sys.modules["outer.inner"].Shadowed = deep.Shadowed
    return deep


def test_a_class_is_named_by_its_shortest_path(package):
    assert reading.class_path(llp.LLP) == "llp.LLP"
    assert reading.class_path(package.Public) == "outer.Public"
    assert reading.class_path(package.Hidden) == "outer.inner.deep.Hidden"
    assert reading.class_path(package.Shadowed) == "outer.inner.Shadowed"
    for cls in (llp.LLP, package.Public, package.Hidden, package.Shadowed):
        assert reading.import_class(reading.class_path(cls)) is cls


@pytest.mark.parametrize("path", ["nowhere_at_all.Model", "llp.NoSuchModel"])
def test_a_class_that_can_not_be_imported_is_told_so(path):
    message = f"^class_path = {path}: the checkpoint needs this class, which can't be imported"
    with pytest.raises(SettingError, match=message):
        reading.import_class(path)


def test_a_tokenizer_is_kept_whole():
    data = SimpleNamespace(tokenizer=Bytes(), start_token=lambda: 256)
    stored = reading.stored_tokenizer(data)
    content = stored.pop("data")
    assert stored == {
        "class_path": "datamodules.Bytes",
        "settings": {"tokenizer": "bytes"},
        "fingerprint": "bytes",
        "start_token": 256,
    }
    assert (content.dtype, content.tolist()) == (torch.uint8, [])
    assert reading.stored_tokenizer(SimpleNamespace()) is None
    assert reading.stored_tokenizer(SimpleNamespace(tokenizer=None)) is None


def test_a_tokenizer_comes_back_byte_for_byte(package):
    class Kept(Bytes):
        def serialized(self):
            return bytes(range(256))

        @classmethod
        def restored(cls, data, made_with):
            assert type(data) is bytes
            return data

    package.Hidden = Kept
    Kept.__module__, Kept.__qualname__ = package.__name__, "Hidden"
    stored = reading.stored_tokenizer(SimpleNamespace(tokenizer=Kept(), start_token=lambda: 0))
    assert reading.restored_tokenizer(stored) == bytes(range(256))


def test_how_weights_were_trained():
    """Counts as they are kept; of the settings those at the end."""
    history = [
        {
            "step": 1,
            "settings": {"data.init_args.batch_size": 2, "trainer.world_size": 4, "data.init_args.window_len": 32},
        },
        {"step": 9, "settings": {"data.init_args.batch_size": 3, "trainer.accumulate_grad_batches": 5}},
    ]
    checkpoint = {
        "callbacks": {"RunMetrics": {"tokens": 1000, "input_tokens": 2000, "seconds": 12.5}},
        "settings_history": history,
        "global_step": 17,
        "seed": 8,
    }
    expected = {
        "step": 17,
        "seed": 8,
        "trained_tokens": 1000,
        "windows_per_step": 3 * 4 * 5,
        "training_window_len": 32,
        "training_seconds": 12.5,
    }
    assert reading.training_record(checkpoint) == expected
    del checkpoint["callbacks"]["RunMetrics"], history[1]
    unknown = dict.fromkeys(("trained_tokens", "windows_per_step", "training_seconds"))
    assert reading.training_record(checkpoint) == {**expected, **unknown}
    del checkpoint["callbacks"]
    assert reading.training_record(checkpoint) == {**expected, **unknown}


def test_states_of_optimizers_bear_the_names_of_parameters():
    """In the order of the optimizer's groups, which is not the model's; what another rank has is left alone."""
    model = torch.nn.Linear(2, 3)
    optimizer = torch.optim.Adam([{"params": [model.bias]}, {"params": [model.weight], "lr": 0.5}])
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    states = [{}, state]
    reading.name_optimizer_states(states, [optimizer, optimizer], model)
    assert states[0] == {}
    assert [group["params"] for group in state["param_groups"]] == [["bias"], ["weight"]]
    assert {name: moments["exp_avg"].shape for name, moments in state["state"].items()} == {
        "bias": (3,),
        "weight": (3, 2),
    }


COMPLETE = ("architecture", "hyper_parameters", "settings_history", "tokenizer", "config", "initialized_from")


@pytest.mark.parametrize("missing", [None, *COMPLETE, "state_dict"])
def test_a_checkpoint_has_all_its_parts(tmp_path, missing):
    """A sharded one has its weights elsewhere."""
    content = {name: None for name in (*COMPLETE, "state_dict") if name != missing}
    torch.save(content, tmp_path / "one.ckpt")
    sharded = tmp_path / "sharded.ckpt"
    sharding.save({}, checkpoint_id=sharded, no_dist=True)
    torch.save(content, sharded / "meta.pt")
    for path, is_whole in ((tmp_path / "one.ckpt", missing is None), (sharded, missing in (None, "state_dict"))):
        if is_whole:
            assert reading.read(str(path)) == content
        else:
            with pytest.raises(
                SettingError, match=r"^ckpt_path = .*: the file was not written by `llp fit`; give the p"
            ):
                reading.read(path)


def test_a_sharded_checkpoint_is_not_one_file(tmp_path):
    (tmp_path / "file.ckpt").touch()
    reading.require_one_file(str(tmp_path / "file.ckpt"))
    with pytest.raises(SettingError, match=f"^ckpt_path = {tmp_path}: it is sharded; .* `llp consolidate {tmp_path}`"):
        reading.require_one_file(str(tmp_path))


# Does it fit?


def checkpoint_of(name, **changed):
    model = getattr(llp, name)(**{**SIZES, **OWN_SETTINGS[name], **changed})
    return {"architecture": f"llp.{name}", "hyper_parameters": dict(model.hparams)}


def test_a_checkpoint_of_the_same_weights_fits():
    model = build("LLP", dropout=0.1, learning_rate=1.0, segment_len=8)
    reading.check_fits(checkpoint_of("LLP"), model)  # other settings, the same weights
    reading.check_fits(checkpoint_of("LLP", dropout=0.1, learning_rate=1.0, segment_len=8), model)
    reading.check_fits(checkpoint_of("PerceiverAR", latent_len=9), build("PerceiverAR"))


@pytest.mark.parametrize(
    ("architecture", "settings", "message"),
    [
        ("Transformer", {}, r"^model.class_path = llp.LLP: the checkpoint is of llp.Transformer; use that class$"),
        ("LLP", {"n_heads": 4}, r"^model.init_args.n_heads = 2: the checkpoint has 4$"),
        ("LLP", {"tie_embeddings": True}, r"^model.init_args.tie_embeddings = False: the checkpoint has True$"),
        ("LLP", {"vocab_size": 20}, r"^vocab_size = 19: the checkpoint has 20; use the tokenizer settings of its run$"),
        (
            "LLP",
            {"dim": 32},
            r"^model.init_args.dim = 16: the checkpoint has 32, so its weights differ \(decoder.embed.weight\)$",
        ),
        (
            "LLP",
            {"n_layers": 4, "mlp_ratio": 4, "dropout": 0.5},
            r"^model.init_args.n_layers, model.init_args.dropout = 3, 0.0: the checkpoint has 4, 0.5, so its "
            r"weights differ \(decoder.layers.3.attention_norm.weight\)$",
        ),
        (
            "LLP",
            {"n_layers": 2},
            r"^model.init_args.n_layers = 3: the checkpoint has 2, so its weights differ "
            r"\(decoder.layers.2.attention_norm.weight\)$",
        ),
    ],
)
def test_a_checkpoint_of_other_weights_does_not_fit(architecture, settings, message):
    with pytest.raises(SettingError, match=message):
        reading.check_fits(checkpoint_of(architecture, **settings), build("LLP"))


def test_a_foreign_checkpoint_does_not_fit():
    with pytest.raises(SettingError, match=r"^ckpt_path = \(loaded\): the checkpoint was not written by `llp fit`"):
        reading.check_fits({"state_dict": {}}, build("LLP"))


def test_the_tokenizer_must_be_that_of_the_training():
    data = SimpleNamespace(tokenizer=SimpleNamespace(fingerprint="a"))
    reading.check_tokenizer({"tokenizer": {"fingerprint": "a"}}, data)
    reading.check_tokenizer({"tokenizer": None}, data)
    reading.check_tokenizer({}, data)
    reading.check_tokenizer({"tokenizer": {"fingerprint": "b"}}, SimpleNamespace())
    message = r"^data.init_args.tokenizer = a: the checkpoint was trained with tokenizer b; leave this setting out$"
    with pytest.raises(SettingError, match=message):
        reading.check_tokenizer({"tokenizer": {"fingerprint": "b"}}, data)


# A run's settings


HISTORY = [
    {"step": 1, "settings": {"model.init_args.lr": 0.1, "model.init_args.dim": 8, "trainer.max_steps": 10}},
    {"step": 5, "settings": {"model.init_args.lr": 0.2}},
]


def test_settings_at_the_end_are_the_newest():
    now = {"model.init_args.lr": 0.2, "model.init_args.dim": 8, "trainer.max_steps": 10}
    assert settings_history.current(HISTORY) == now
    assert settings_history.changes(HISTORY, now) == {}
    changed = {"model.init_args.lr": 0.1, "model.init_args.new": None}
    assert settings_history.changes(HISTORY, {**now, **changed}) == changed
    lines = settings_history.describe(
        HISTORY, {"model.init_args.lr": 0.1, "trainer.max_steps": 20, "a.new": 3}, step=1234
    )
    assert lines == ["lr 0.2 -> 0.1 from step 1,234", "max_steps 10 -> 20 from step 1,234"]


def test_a_resumed_run_changes_only_what_can_change():
    now = settings_history.current(HISTORY)
    for allowed in ({}, {"trainer.max_steps": 20}, {"model.init_args.lr": 9}, {"data.init_args.new": 1}):
        settings_history.check_resume(HISTORY, {**now, **allowed}, frozenset({"lr"}))
    with pytest.raises(
        SettingError, match=r"^model.init_args.dim = 16: the run has 8, and a resumed run can't change it"
    ):
        settings_history.check_resume(HISTORY, {**now, "model.init_args.dim": 16}, frozenset({"lr"}))
    with pytest.raises(SettingError, match=r"^model.init_args.lr = 9: the run has 0.2"):
        settings_history.check_resume(HISTORY, {**now, "trainer.max_steps": 20, "model.init_args.lr": 9}, frozenset())


def test_settings_of_a_run_are_plain_values(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    trainer = SimpleNamespace(**{name: number for number, name in enumerate(settings_history.OF_TRAINER)})
    model = SimpleNamespace(hparams={"betas": (0.9, [0.95, "x"]), "bias": None, "is_on": True, "kind": complex(1, 2)})
    data = SimpleNamespace(hparams={"window_len": 32}, about={"data_fingerprint": "abc", "more": 1})
    of_model = {"betas": [0.9, [0.95, "x"]], "bias": None, "is_on": True, "kind": "(1+2j)"}
    expected = {
        "seed_everything": 7,
        **{f"model.init_args.{name}": value for name, value in of_model.items()},
        **{f"trainer.{name}": number for number, name in enumerate(settings_history.OF_TRAINER)},
    }
    of_data = {"data.init_args.window_len": 32, "data.data_fingerprint": "abc"}
    assert settings_history.settings_of(trainer, model, data) == {**expected, **of_data}
    assert settings_history.settings_of(trainer, model, None) == expected
    monkeypatch.delenv("PL_GLOBAL_SEED")
    assert settings_history.seed() is None
    assert settings_history.settings_of(trainer, model, None)["seed_everything"] is None


def test_the_package_names_all_that_a_checkpoint_holds(trained):
    for path in (trained / "checkpoints").glob("*.ckpt"):
        keys = torch.load(path, weights_only=True).keys() - {"WikiText103"}  # the state of the data module
        assert {key for key in keys if f"`{key}`" not in checkpoints.__doc__} == set()
