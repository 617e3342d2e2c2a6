"""The learning rate against its formulas, and which weights decay. AdamW: `test_training_by_hand.py`."""

import math

import pytest

from helpers.small_models import ARCHITECTURES, build
from llp.optimization import cosine, halving, parameter_groups


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.1),  # warm-up over 10 steps: a tenth in the first one
        (1, 0.2),
        (5, 0.6),
        (8, 0.9),
        (9, 1.0),
        (10, 1.0),  # the peak: from here 100 steps down
        (35, 0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2),  # a quarter of the way: cos(pi / 4)
        (60, 0.55),  # the middle: halfway between 1 and the floor
        (85, 0.1 + 0.9 * (1 - math.sqrt(0.5)) / 2),
        (110, 0.1),
        (111, 0.1),  # and stays there
        (500, 0.1),
    ],
)
def test_cosine(step, expected):
    assert cosine(step, warmup_steps=10, max_steps=110, floor=0.1) == pytest.approx(expected, rel=1e-12)


def test_halving():
    assert [halving(step, 0, 3) for step in range(8)] == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]
    assert [halving(step, 4, 3) for step in range(8)] == [0.25, 0.5, 0.75, 0.5, 0.5, 0.5, 0.25, 0.25]
    assert [halving(step, 1, 1) for step in range(4)] == [1, 0.5, 0.25, 0.125]
    assert halving(250_000, 500, 100_000) == 0.25


LINEAR = ("query", "key_value", "output", "up", "down", "head", "compress")
"""The last part of the name of a linear map's module."""


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("settings", [{}, {"share_key_value": True, "key_value_norm": True}], ids=["usual", "norm"])
def test_weights_of_linear_maps_decay_and_nothing_else(name, settings):
    decoder = build(name, **settings).decoder
    decaying, others = parameter_groups(decoder, 0.3)
    names = {id(parameter): name for name, parameter in decoder.named_parameters()}
    expected = {name for name in names.values() if name.endswith(".weight") and name.split(".")[-2] in LINEAR}
    assert "head.weight" in expected
    assert len(expected) == 5 * 3 + 1 + (name == "CompressedAttention")
    assert sorted(names[id(parameter)] for parameter in decaying["params"]) == sorted(expected)
    assert sorted(names[id(parameter)] for parameter in others["params"]) == sorted({*names.values()} - expected)
    assert "embed.weight" not in expected
    assert (decaying["weight_decay"], others["weight_decay"]) == (0.3, 0.0)
