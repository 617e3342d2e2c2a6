"""What a checkpoint says of itself, and what is compared with it."""

import pytest
import torch
import torch.distributed.checkpoint as sharding

import llp
from helpers.own_patterns import OwnModel
from helpers.small_models import OWN_SETTINGS, SIZES, build
from llp import checkpoints
from llp.checkpoints import reading
from llp.errors import SettingError


@pytest.mark.parametrize(("cls", "path"), [(llp.LLP, "llp.LLP"), (OwnModel, "helpers.own_patterns.OwnModel")])
def test_a_class_is_named_by_its_shortest_path(cls, path):
    assert reading.class_path(cls) == path
    assert reading.import_class(path) is cls


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
        ("LLP", {"n_layers": 2}, r"^model.init_args.n_layers = 3: the checkpoint has 2, so its weights differ \(decod"),
    ],
)
def test_a_checkpoint_of_other_weights_does_not_fit(architecture, settings, message):
    with pytest.raises(SettingError, match=message):
        reading.check_fits(checkpoint_of(architecture, **settings), build("LLP"))


def test_the_package_names_all_that_a_checkpoint_holds(trained):
    for path in (trained / "checkpoints").glob("*.ckpt"):
        keys = torch.load(path, weights_only=True).keys() - {"WikiText103"}  # the state of the data module
        assert {key for key in keys if f"`{key}`" not in checkpoints.__doc__} == set()
