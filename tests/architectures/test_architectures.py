"""The architectures against the brute-force reference; their reach and their sizes."""

from pathlib import Path

import pytest
import torch
import yaml

import llp
from helpers import reference
from helpers.small_models import ARCHITECTURES, FORMS, LATENT, SIZES, build
from llp.decoder.rotary import rotary_table


def expected_logits(model, tokens: list[int]) -> torch.Tensor:
    """The reference's logits with a model's weights and settings."""
    settings = dict(model.hparams)
    latent_len, segment_len = settings.get("latent_len"), settings.get("segment_len")
    sees = {
        "Transformer": lambda: reference.transformer_sees,
        "LLP": lambda: reference.llp_sees(segment_len, settings["look_back"]),
        "SlidingWindow": lambda: reference.window_sees(settings["window"]),
        "ShiftedSegments": lambda: reference.llp_sees(segment_len, look_back=0),
        "PerceiverAR": lambda: reference.transformer_sees,
        "DoubleAttention": lambda: reference.double_sees(latent_len),
        "SplitAttention": lambda: reference.split_sees(latent_len, segment_len),
        "CompressedAttention": lambda: reference.double_sees(latent_len),
    }[type(model).__name__]()
    dense_every = settings.get("dense_every")
    return reference.logits(
        model.decoder.state_dict(),
        tokens,
        settings["n_layers"],
        settings["n_heads"],
        sees,
        settings["rotary_base"],
        latent_len,
        latents_only=isinstance(model, llp.PerceiverAR),
        rotary_first_layer_only=settings["rotary_first_layer_only"],
        second_half_sees=reference.shifted_sees(segment_len) if isinstance(model, llp.ShiftedSegments) else None,
        dense_layers=range(settings["n_layers"])[::-dense_every] if dense_every else (),
    )


@pytest.mark.parametrize(("name", "settings"), FORMS)
@pytest.mark.parametrize("n", [1, 3, 4, 5, 6, 8, 11, 18])
def test_equals_the_reference(name, settings, n):
    model = build(name, **settings)
    tokens = torch.randint(SIZES["vocab_size"], (2, n))
    with torch.no_grad():
        logits = model(tokens)
    assert logits.shape == (2, min(n, 5) if name in LATENT else n, SIZES["vocab_size"])
    for row, sequence in zip(logits, tokens.tolist(), strict=True):
        torch.testing.assert_close(row, expected_logits(model, sequence), rtol=1e-11, atol=1e-11)


PUBLISHED = {"share_key_value": True, "key_value_norm": True, "rotary_first_layer_only": True}


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize(
    "settings",
    [
        PUBLISHED,
        {"share_key_value": True},
        {"rotary_first_layer_only": True, "n_heads": 8},
        {"share_key_value": True, "key_value_norm": True, "n_heads": 1},
        {"n_heads": 4, "n_layers": 4, "mlp_ratio": 2, "rotary_base": 100.0, "tie_embeddings": True},
        {"n_layers": 2, "initialization": "torch"},
    ],
    ids=lambda settings: ",".join(settings),
)
def test_equals_the_reference_with_other_settings(name, settings):
    if name == "ShiftedSegments" and settings.get("n_heads") == 1:
        settings = {**settings, "n_heads": 2}  # each half is one head
    model = build(name, **settings)
    for n in (3, 12):
        tokens = torch.randint(SIZES["vocab_size"], (1, n))
        expected = expected_logits(model, tokens[0].tolist())
        torch.testing.assert_close(model(tokens)[0].detach(), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("LLP", {"segment_len": 1}),
        ("LLP", {"segment_len": 3, "n_layers": 1}),
        ("LLP", {"segment_len": 1, "look_back": 0}),
        ("LLP", {"segment_len": 3, "look_back": 2, "dense_every": 1}),
        ("SlidingWindow", {"window": 1}),
        ("SlidingWindow", {"window": 2, "n_layers": 1}),
        ("SlidingWindow", {"window": 10}),
        ("SlidingWindow", {"window": 30}),
        ("ShiftedSegments", {"segment_len": 2}),
        ("ShiftedSegments", {"segment_len": 4, "n_layers": 1, "n_heads": 4}),
        ("ShiftedSegments", {"segment_len": 20}),
        ("PerceiverAR", {"latent_len": 1}),
        ("DoubleAttention", {"latent_len": 1, "n_layers": 1}),
        ("SplitAttention", {"latent_len": 4, "segment_len": 1}),
        ("SplitAttention", {"latent_len": 2, "segment_len": 20}),
        ("CompressedAttention", {"latent_len": 1, "history_len": 9, "compressed_len": 1, "n_layers": 2}),
    ],
)
def test_equals_the_reference_in_other_shapes(name, settings):
    model = build(name, **settings)
    for n in (2, 10):
        tokens = torch.randint(SIZES["vocab_size"], (1, n))
        expected = expected_logits(model, tokens[0].tolist())
        torch.testing.assert_close(model(tokens)[0].detach(), expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("name", ["DoubleAttention", "SplitAttention", "CompressedAttention"])
def test_history_knows_its_future_through_depth(name):
    """What makes these three different: latents read a history that has read on (in V2 within its segment)."""
    model = build(name, n_layers=2)
    x = torch.randn(1, 14, 16, dtype=torch.float64, requires_grad=True)
    stream = model.decoder.layers[0](x, rotary_table(14, 8, 10000.0, like=x), 14)
    seen = torch.autograd.grad(stream[0, 0].square().sum(), x)[0][0].abs().amax(-1) > 0
    expected = {"SplitAttention": 3}.get(name, 9)  # its segment of 3, or the history of 14 - 5
    assert seen.nonzero().flatten().tolist() == list(range(expected))


REACHES = {  # the first position that position i reads through a depth of so many layers
    "LLP alone": ("LLP", {"look_back": 0}, lambda i, depth: i // 4 * 4),
    "LLP": ("LLP", {}, lambda i, depth: (i // 4 - depth) * 4),
    "LLP, two back": ("LLP", {"look_back": 2}, lambda i, depth: (i // 4 - 2 * depth) * 4),
    "SlidingWindow": ("SlidingWindow", {}, lambda i, depth: i - 4 * depth),
    "ShiftedSegments": ("ShiftedSegments", {}, lambda i, depth: (i // 3 - depth) * 3),
}


@pytest.mark.parametrize("n_layers", [1, 2, 3])
@pytest.mark.parametrize("case", REACHES)
def test_a_position_reads_all_of_its_reach_and_nothing_before(case, n_layers):
    name, settings, first_read = REACHES[case]
    reads = build(name, n_layers=n_layers, **settings).geometry.reads(30)
    for i in range(30):
        assert reads[i].nonzero().flatten().tolist() == list(range(max(0, first_read(i, n_layers)), i + 1))


def test_at_equal_pairs_a_sliding_window_reaches_further_than_llp():
    """Segments of m have 1.5 m + 0.5 pairs a query, and so has a window of that many positions, far from the start."""
    m, n = 3, 30
    window = (3 * m + 1) // 2
    local, sliding = build("LLP", segment_len=m), build("SlidingWindow", window=window)
    pairs = [model.layers()[0].pattern.pair_count(2, m * 2, n) for model in (local, sliding)]
    assert pairs == [2 * m * window] * 2
    reaches = [model.geometry.reads(n).sum(dim=1)[-6 * m :].float().mean() for model in (local, sliding)]
    assert reaches[0] == 3 * m + (m + 1) / 2  # L segments, and half of its own
    assert reaches[1] == 3 * (window - 1) + 1
    assert reaches[1] > reaches[0]


@pytest.mark.parametrize(
    ("name", "edges"),
    [
        ("Transformer", {12: []}),
        ("LLP", {3: [], 4: [], 5: [4], 12: [4, 8], 13: [4, 8, 12]}),  # segments of 4
        ("SlidingWindow", {4: [], 5: [], 6: [5], 18: [5]}),  # the first position that does not see the first
        ("ShiftedSegments", {3: [], 4: [3], 9: [3, 6], 10: [3, 6, 9]}),  # segments of 6, and of 3 at first
        ("SplitAttention", {3: [], 6: [1], 12: [3, 6, 7, 8]}),  # segments of 3 in a history of 7, and back to all
        *((name, {3: [], 5: [], 6: [1], 12: [7]}) for name in LATENT if name != "SplitAttention"),  # 5 latents
    ],
)
def test_where_something_new_begins_in_the_pattern(name, edges):
    assert {n: build(name).geometry.edges(n) for n in edges} == edges


def test_perceiver_ar_leaves_history_out_in_layer_0_only():
    model = build("PerceiverAR", history_dropout=0.25)
    assert [layer.history_dropout for layer in model.layers()] == [0.25, 0.0, 0.0]


def test_layers_compute_only_what_the_last_positions_depend_on():
    """Segments of 4: position 19 sees those from 12 on, which see those from 8 on, which see those from 4 on."""
    lengths = build("LLP", n_layers=3, segment_len=4).geometry.lengths(20, 1)
    assert [(one.first, one.n_in, one.n_out) for one in lengths] == [(0, 20, 12), (8, 12, 8), (12, 8, 1)]


def test_default_lengths_are_the_documented_ones():
    with torch.device("meta"):
        models = {name: getattr(llp, name)(**SIZES) for name in ARCHITECTURES}
    assert {models[name].segment_len for name in ("LLP", "ShiftedSegments", "SplitAttention")} == {256}
    assert (models["LLP"].look_back, models["LLP"].dense_every, models["SlidingWindow"].window) == (1, None, 256)
    assert {models[name].latent_len for name in LATENT} == {1024}
    assert models["PerceiverAR"].history_dropout == 0
    compressed = models["CompressedAttention"]
    assert (compressed.history_len, compressed.compressed_len) == (1024, 512)


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("Transformer", {"n_layers": 24}, 214_622_020),
        ("LLP", {"n_layers": 24}, 214_622_020),
        ("Transformer", {"n_layers": 12}, 129_595_204),
        ("LLP", {"n_layers": 12}, 129_595_204),
        ("LLP", {"n_layers": 12, "tie_embeddings": True}, 107_326_276),
        ("Transformer", {"n_layers": 24, "tie_embeddings": True}, 192_353_092),
        ("LLP", {"n_layers": 12, "look_back": 0, "dense_every": 4}, 129_595_204),
        *((name, {"n_layers": 12}, 129_595_204) for name in ("SlidingWindow", "ShiftedSegments")),
        *((name, {"n_layers": 12}, 129_595_204) for name in ("PerceiverAR", "DoubleAttention", "SplitAttention")),
        *((name, {"n_layers": 24}, 214_622_020) for name in ("PerceiverAR", "DoubleAttention", "SplitAttention")),
        ("CompressedAttention", {"n_layers": 12}, 130_119_492),
        ("CompressedAttention", {"n_layers": 24}, 215_146_308),
        ("PerceiverAR", {"n_layers": 24, "tie_embeddings": True}, 192_353_092),
        *((name, {"n_layers": 12, **PUBLISHED}, 122_520_388) for name in ("PerceiverAR", "SplitAttention")),
        *((name, {"n_layers": 24, **PUBLISHED}, 200_472_388) for name in ("PerceiverAR", "DoubleAttention")),
        ("CompressedAttention", {"n_layers": 12, **PUBLISHED}, 123_044_676),
        ("CompressedAttention", {"n_layers": 24, **PUBLISHED}, 200_996_676),
        ("LLP", {"n_layers": 12, **PUBLISHED, "key_value_norm": False}, 122_517_316),
        ("LLP", {"n_layers": 24, **PUBLISHED, "key_value_norm": False}, 200_466_244),
    ],
)
def test_published_sizes(name, settings, expected):
    with torch.device("meta"):
        model = getattr(llp, name)(vocab_size=28_996, dim=768, n_heads=6, **settings)
        model.configure_model()
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


def test_three_billion_parameters_are_built_without_memory():
    """The shipped configuration with its vocabulary of 32,000."""
    config = yaml.safe_load((Path(__file__).parents[2] / "configs/model/llp_3b.yaml").read_text())["model"]
    with torch.device("meta"):
        model = llp.LLP(vocab_size=32_000, **config["init_args"])
        model.configure_model()
    assert all(parameter.is_meta for parameter in model.parameters())
    assert sum(parameter.numel() for parameter in model.parameters()) == 2_995_953_920
