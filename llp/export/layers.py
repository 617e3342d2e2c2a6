"""An architecture's layers as plain values, and back: what a configuration file holds of them."""

import hashlib
import json
from functools import partial
from typing import Any

from llp.decoder.patterns import (
    LayerPattern,
    causal_attention,
    history_attention,
    segment_pair_attention,
    shifted_segment_attention,
    sliding_window_attention,
)
from llp.errors import require

_FUNCTIONS = {
    function.__name__: function
    for function in (
        causal_attention,
        history_attention,
        segment_pair_attention,
        shifted_segment_attention,
        sliding_window_attention,
    )
}
"""The attention patterns whose source an exported folder holds, by name."""


def described(pattern: LayerPattern) -> dict[str, Any]:
    """What a layer's logits depend on in its pattern, as JSON can hold it.

    Raises:
        SettingError: If its attention is none of the package's own functions, or a `partial` of one.
    """
    attend: Any = pattern.attend
    function, arguments = (attend.func, attend.keywords) if isinstance(attend, partial) else (attend, {})
    name = getattr(function, "__name__", type(function).__name__)
    positional = isinstance(attend, partial) and len(attend.args) > 0
    names = ", ".join(_FUNCTIONS)
    remedy = f"only these can be exported, alone or as a partial with keywords: {names}; write the layer with them"
    require(_FUNCTIONS.get(name) is function and not positional, "attend", name, remedy)
    return {"attend": name, "arguments": arguments, "n_out": pattern.n_out, "latent_len": pattern.latent_len}


def layer_pattern(description: dict[str, Any]) -> LayerPattern:
    """The pattern that `described` gave, as far as its logits go."""
    attend = partial(_FUNCTIONS[description["attend"]], **description["arguments"])
    return LayerPattern(attend, description["n_out"], latent_len=description["latent_len"])


def digest(parts: dict[str, Any]) -> str:
    """SHA-256 over plain values, whatever the order of their names."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
