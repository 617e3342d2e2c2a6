"""Settings at their limits, and how each architecture scores a text: windows, contexts and edges by hand."""

from types import SimpleNamespace

import pytest
import torch

import llp
from helpers.small_models import ARCHITECTURES, LATENT, OWN_SETTINGS, SIZES, build
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
        ("ShiftedSegments", (16, 9, None), "scoring_window_len = 9: set it to a multiple of segment_len = 6"),
        ("ShiftedSegments", (16, 12, 3), "scoring_stride = 3: set it to a multiple of segment_len = 6"),
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
    ],
)
def test_scoring_windows(name, asked, expected):
    model = make(name)
    if isinstance(expected, tuple):
        assert model.geometry.scoring_window(*asked) == expected
    else:
        with pytest.raises(SettingError, match=expected):
            model.geometry.scoring_window(*asked)


@pytest.mark.parametrize(
    ("name", "settings", "asked", "expected"),
    [
        ("LLP", {"look_back": 0}, (16, None, None), (4, 4)),  # a segment knows nothing of those before
        ("LLP", {"look_back": 2}, (16, None, None), (48, 24)),
        ("LLP", {"dense_every": 2}, (16, None, None), (16, 8)),  # there is no end to the reach
        ("LLP", {"dense_every": 2}, (16, 13, None), (13, 6)),
        ("LLP", {"dense_every": 2}, (16, 13, 5), (13, 5)),
        ("LLP", {"dense_every": 2}, (3, None, None), "segment_len = 4"),
        ("SlidingWindow", {"window": 1}, (16, None, None), (1, 1)),
        ("ShiftedSegments", {"n_layers": 2}, (16, None, None), (12, 6)),
    ],
)
def test_scoring_windows_with_other_settings(name, settings, asked, expected):
    model = make(name, **settings)
    if isinstance(expected, tuple):
        assert model.geometry.scoring_window(*asked) == expected
    else:
        with pytest.raises(SettingError, match=expected):
            model.geometry.scoring_window(*asked)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("n", [1, 4, 5, 9, 22])
def test_contexts_are_what_gradients_reach(name, n):
    """How many tokens a position is predicted from, counted from the gradients of its logits."""
    if name == "CompressedAttention" and n > 18:
        n = 18
    model = build(name)
    embedded = torch.randn(1, n, 16, dtype=torch.float64, requires_grad=True)
    model.decoder.embed.register_forward_hook(lambda module, args, output: embedded)
    logits = model(torch.zeros(1, n, dtype=torch.long))[0]  # (T, V)
    probe = torch.randn(19, dtype=torch.float64)
    rows = [torch.autograd.grad(row @ probe, embedded, retain_graph=True)[0][0] for row in logits]
    seen = [int((row.abs().amax(-1) > 0).sum()) for row in rows]
    assert model.geometry.context_lens(n)[n - len(seen) :].tolist() == seen


@pytest.mark.parametrize(
    ("name", "n", "edges"),
    [
        ("Transformer", 18, []),
        ("LLP", 4, []),
        ("LLP", 5, [4]),
        ("LLP", 13, [4, 8, 12]),
        ("SlidingWindow", 5, []),
        ("SlidingWindow", 18, [5]),
        ("ShiftedSegments", 10, [3, 6, 9]),
        *((name, 18, [13]) for name in LATENT),
        *((name, 3, [0]) for name in LATENT),
    ],
)
def test_edges_of_patterns(name, n, edges):
    assert make(name).geometry.edges(n) == edges


def test_the_decoder_is_built_once():
    model = make("LLP")
    assert not hasattr(model, "decoder")
    model.configure_model()
    decoder = model.decoder
    model.configure_model()
    assert model.decoder is decoder


def test_history_is_dropped_in_the_first_layer_alone():
    model = make("PerceiverAR", history_dropout=0.5)
    assert [model.layer_pattern(layer).history_dropout for layer in range(3)] == [0.5, 0.0, 0.0]


def test_the_cosine_needs_an_end():
    model = make("LLP", schedule="cosine")
    for max_steps in (-1, 0):
        model._trainer = SimpleNamespace(max_steps=max_steps)
        with pytest.raises(SettingError, match=f"trainer.max_steps = {max_steps}: the cosine needs its length"):
            model.configure_optimizers()
