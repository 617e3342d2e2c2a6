"""An architecture's layers as plain values in a configuration file, and back."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from llp.decoder.geometry import Compression, Geometry
from llp.decoder.patterns import (
    CausalAttention,
    HistoryAttention,
    Layer,
    SegmentAttention,
    ShiftedSegmentAttention,
    SlidingWindowAttention,
)
from llp.errors import require

PATTERNS = {
    pattern.__name__: pattern
    for pattern in (
        CausalAttention,
        HistoryAttention,
        SegmentAttention,
        ShiftedSegmentAttention,
        SlidingWindowAttention,
    )
}
"""The attention patterns whose source an exported folder holds, by name."""


def described(layer: Layer) -> dict[str, object]:
    """What a layer's logits depend on, as JSON can hold it.

    Raises:
        SettingError: If its pattern is none of the package's own.
    """
    name = type(layer.pattern).__name__
    remedy = f"only these can be exported: {', '.join(PATTERNS)}; write the layer with them"
    require(PATTERNS.get(name) is type(layer.pattern), "pattern", name, remedy)
    return {"pattern": name, "arguments": asdict(layer.pattern), "n_out": layer.n_out}


def geometry_of(
    layers: list[dict[str, Any]], n_heads: int, compression: dict[str, int] | None, rotates_values: bool
) -> Geometry:
    """The geometry whose layers were `described`, as far as logits go."""
    built = tuple(Layer(PATTERNS[one["pattern"]](**one["arguments"]), one["n_out"]) for one in layers)
    return Geometry(built, n_heads, None if compression is None else Compression(**compression), rotates_values)


def digest(parts: Mapping[str, object]) -> str:
    """SHA-256 over plain values, whatever the order of their names."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
