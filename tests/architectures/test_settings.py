"""Settings at their limits, and how each architecture scores a text: windows, contexts and edges by hand."""

import inspect
from dataclasses import MISSING, fields
from types import SimpleNamespace

import pytest
import torch

import llp
from helpers.small_models import LATENT, OWN_SETTINGS, SIZES, build
from llp.decoder.block import DecoderSettings
from llp.errors import SettingError


def make(name, **settings):
    return getattr(llp, name)(**{**SIZES, **OWN_SETTINGS[name], **settings})


@pytest.mark.parametrize(
    ("setting", "taken", "refused"),
    [
        ("vocab_size", [1], [0, -1]),
        ("n_layers", [1], [0]),
        ("n_heads", [1, 8], [0, 3, 16]),  # dim = 16: widths of 16 and 2; no whole width, an odd one
        ("dim", [4, 20], [0, 2, 6, 15]),  # two heads of an even width
        ("mlp_ratio", [1], [0]),
        ("dropout", [0.0, 0.999], [-0.1, 1.0]),
        ("rotary_base", [1e-3], [0.0, -1.0]),
        ("learning_rate", [1e-9], [0.0, -1e-3]),
        ("betas", [(0.0, 0.0), (0.999, 0.999)], [(1.0, 0.9), (0.9, 1.0), (-0.1, 0.9), (0.9, -0.1)]),
        ("weight_decay", [0.0], [-0.1]),
        ("warmup_steps", [0], [-1]),
        ("final_learning_rate", [0.0], [-0.1]),
        ("halve_every", [1], [0]),
    ],
)
def test_limits_of_every_model(setting, taken, refused):
    for value in taken:
        assert make("LLP", **{setting: value}).hparams[setting] == value
    for value in refused:
        with pytest.raises(SettingError, match=rf"(dim|{setting}) = "):
            make("LLP", **{setting: value})


@pytest.mark.parametrize(
    ("name", "setting", "taken", "refused"),
    [
        ("LLP", "segment_len", [1], [0]),
        ("LLP", "look_back", [0, 9], [-1]),
        ("LLP", "dense_every", [None, 1, 9], [0, -1]),
        ("SlidingWindow", "window", [1], [0]),
        ("ShiftedSegments", "segment_len", [2], [0, 1, 3, -2]),
        ("ShiftedSegments", "n_heads", [2, 4], [1]),
        ("PerceiverAR", "latent_len", [1], [0]),
        ("PerceiverAR", "history_dropout", [0.0, 0.99], [-0.1, 1.0]),
        ("SplitAttention", "segment_len", [1], [0]),
        ("CompressedAttention", "compressed_len", [1, 12], [0, 13]),
        ("CompressedAttention", "n_layers", [2], [1]),
    ],
)
def test_limits_of_an_architecture(name, setting, taken, refused):
    for value in taken:
        assert make(name, **{setting: value}).hparams[setting] == value
    for value in refused:
        with pytest.raises(SettingError, match=f"{setting} = "):
            make(name, **{setting: value})


def test_a_norm_needs_a_shared_projection():
    make("LLP", key_value_norm=True, share_key_value=True)
    make("LLP", key_value_norm=False, share_key_value=True)
    with pytest.raises(SettingError, match="key_value_norm = True"):
        make("LLP", key_value_norm=True)


@pytest.mark.parametrize(
    ("name", "asked", "expected"),
    [  # (window in training, asked length, asked stride): (length, stride); segments and latents of OWN_SETTINGS
        ("Transformer", (16, None, None), (16, 8)),
        ("Transformer", (16, 9, None), (9, 4)),
        ("Transformer", (1, None, None), (1, 1)),
        ("Transformer", (16, 9, 9), (9, 9)),
        ("Transformer", (16, 9, 10), "scoring_stride = 10"),
        ("Transformer", (16, 9, 0), "scoring_stride = 0"),
        ("Transformer", (16, 0, None), "scoring_window_len = 0"),
        ("LLP", (16, None, None), (24, 12)),  # three layers of segments of 4 reach 12
        ("LLP", (4, None, None), (24, 12)),
        ("LLP", (3, None, None), "segment_len = 4"),
        ("LLP", (16, 16, None), (16, 4)),
        ("LLP", (16, 28, None), (28, 16)),
        ("LLP", (16, None, 4), (16, 4)),
        ("LLP", (16, None, 20), (32, 20)),
        ("LLP", (16, 32, 20), (32, 20)),
        ("LLP", (16, 28, 20), (28, 20)),  # less than the reach before the scored ones
        ("LLP", (16, 12, None), (12, 4)),  # no longer than the reach: half of it, in whole segments
        ("LLP", (16, 4, None), (4, 4)),
        ("LLP", (16, 4, 4), (4, 4)),
        ("LLP", (16, 4, 8), r"scoring_stride = 8: set it to 1 \.\. 4, the window's length"),
        ("LLP", (16, 0, None), "scoring_window_len = 0: set it to a multiple"),
        ("LLP", (16, 18, 4), "scoring_window_len = 18: set it to a multiple"),
        ("LLP", (16, 24, 6), "scoring_stride = 6: set it to a multiple"),
        ("LLP", (16, 24, 0), "scoring_stride = 0: set it to a multiple"),
        ("SlidingWindow", (16, None, None), (24, 12)),  # three layers of windows of 5 reach 12
        ("SlidingWindow", (5, None, None), (24, 12)),
        ("SlidingWindow", (4, None, None), "window = 5: window_len = 4 is shorter"),
        ("SlidingWindow", (16, 13, None), (13, 1)),
        ("SlidingWindow", (16, 12, None), (12, 6)),
        ("SlidingWindow", (16, 1, None), (1, 1)),
        ("SlidingWindow", (16, None, 7), (19, 7)),
        ("SlidingWindow", (16, 7, 7), (7, 7)),
        ("SlidingWindow", (16, 7, 8), "scoring_stride = 8"),
        ("SlidingWindow", (16, 7, 0), "scoring_stride = 0"),
        ("SlidingWindow", (16, 0, None), "scoring_window_len = 0"),
        ("ShiftedSegments", (16, None, None), (24, 12)),  # three halves of 6, in whole segments
        ("ShiftedSegments", (6, None, None), (24, 12)),
        ("ShiftedSegments", (5, None, None), "segment_len = 6: window_len = 5 is shorter"),
        ("ShiftedSegments", (16, 18, None), (18, 6)),
        ("ShiftedSegments", (16, 12, None), (12, 6)),
        ("ShiftedSegments", (16, 6, None), (6, 6)),
        ("ShiftedSegments", (16, 9, None), "scoring_window_len = 9: set it to a multiple of 6"),
        ("ShiftedSegments", (16, 12, 3), "scoring_stride = 3: set it to a multiple of 6"),
        *((name, (16, None, None), (16, 5)) for name in LATENT),  # five latents
        *((name, (5, None, None), (5, 5)) for name in LATENT),
        *((name, (4, None, None), "latent_len = 5: window_len = 4 is shorter") for name in LATENT),
        *((name, (16, 3, None), (3, 3)) for name in LATENT),
        *((name, (16, 12, None), (12, 5)) for name in LATENT),
        *((name, (16, 12, 5), (12, 5)) for name in LATENT),
        *((name, (16, 12, 6), "scoring_stride = 6: only the latents are scored") for name in LATENT),
        ("CompressedAttention", (18, None, None), (18, 5)),  # a history of 13 and five latents
        ("CompressedAttention", (19, None, None), "window_len = 19: history_len"),
        ("CompressedAttention", (16, 18, None), (18, 5)),
        ("CompressedAttention", (16, 19, None), "scoring_window_len = 19: history_len"),
        (("LLP", {"look_back": 0}), (16, None, None), (4, 4)),  # a segment knows nothing of those before
        (("LLP", {"look_back": 2}), (16, None, None), (48, 24)),
        (("LLP", {"dense_every": 2}), (16, None, None), (16, 8)),  # there is no end to the reach
        (("LLP", {"dense_every": 2}), (16, 13, None), (13, 6)),
        (("LLP", {"dense_every": 2}), (16, 13, 5), (13, 5)),
        (("LLP", {"dense_every": 2}), (3, None, None), "segment_len = 4"),
        (("SlidingWindow", {"window": 1}), (16, None, None), (1, 1)),
        (("ShiftedSegments", {"n_layers": 2}), (16, None, None), (12, 6)),
    ],
)
def test_scoring_windows(name, asked, expected):
    name, settings = (name, {}) if isinstance(name, str) else name
    geometry = make(name, **settings).geometry
    if isinstance(expected, tuple):
        assert geometry.scoring_window(*asked) == expected
    else:
        with pytest.raises(SettingError, match=expected):
            geometry.scoring_window(*asked)


def test_the_decoder_is_built_once():
    model = make("LLP")
    assert not hasattr(model, "decoder")
    model.configure_model()
    decoder = model.decoder
    model.configure_model()
    assert model.decoder is decoder


@pytest.mark.parametrize("use", ["forward", "optimizer", "load_state_dict", "extend"])
def test_in_plain_torch_a_model_builds_itself_where_it_was_moved(use):
    """Under a Trainer it does not: there the strategy says where."""
    weights = build("LLP").state_dict()
    tokens = torch.zeros(1, 3, dtype=torch.int64)

    def first_use(model):
        match use:
            case "forward":
                model(tokens)
            case "optimizer":
                assert len(torch.optim.AdamW(model.parameters()).param_groups[0]["params"]) == len(weights)
            case "load_state_dict":
                model.load_state_dict(weights)
            case "extend":
                model.extend(tokens, model.new_cache())

    model = make("LLP").double()
    first_use(model)
    assert {weight.dtype for weight in model.state_dict().values()} == {torch.float64}
    if use == "optimizer":
        return
    attached = make("LLP")
    attached._trainer = SimpleNamespace()
    with pytest.raises(SettingError, match=r"model = LLP: call configure_model\(\) first"):
        first_use(attached)


def test_a_decoder_has_the_defaults_of_a_model():
    of_model = {name: one.default for name, one in inspect.signature(llp.Transformer).parameters.items()}
    assert {field.name: field.default for field in fields(DecoderSettings) if field.default is not MISSING} == {
        field.name: of_model[field.name] for field in fields(DecoderSettings) if field.name != "vocab_size"
    }
