"""Small models of every architecture."""

import torch

import llp
from helpers.own_patterns import OwnModel
from llp import testing
from llp.language_model import LanguageModel

SIZES = {"vocab_size": 19, "dim": 16, "n_layers": 3, "n_heads": 2}

OWN_SETTINGS = {
    "Transformer": {},
    "LLP": {"segment_len": 4},
    "SlidingWindow": {"window": 5},
    "ShiftedSegments": {"segment_len": 6},
    "PerceiverAR": {"latent_len": 5},
    "DoubleAttention": {"latent_len": 5},
    "SplitAttention": {"latent_len": 5, "segment_len": 3},
    "CompressedAttention": {"latent_len": 5, "history_len": 13, "compressed_len": 4},
}
ARCHITECTURES = list(OWN_SETTINGS)
FORMS = [
    *((name, {}) for name in ARCHITECTURES),
    *(("LLP", {"look_back": look_back}) for look_back in (0, 2, 3)),
    ("LLP", {"dense_every": 2}),
    ("LLP", {"look_back": 0, "dense_every": 3}),
]
"""The architectures, and those forms of them in which other positions attend to each other."""
OWN_FORMS = [("OwnModel", {"kind": kind}) for kind in ("WindowWithSinks", "Dilated", "Landmarks", "Blind")]
"""Architectures that a user might bring, of patterns that are nothing but their definition."""
LATENT = [name for name in ARCHITECTURES if "latent_len" in OWN_SETTINGS[name]]


def build(name: str, **settings) -> LanguageModel:
    """A small model of the given architecture in float64 with large random weights, so that nothing is near zero."""
    torch.manual_seed(0)  # for what the caller draws
    cls = OwnModel if name == "OwnModel" else getattr(llp, name)
    return testing.build(cls, {**SIZES, **OWN_SETTINGS.get(name, {}), **settings})
