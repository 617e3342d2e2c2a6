"""LLP on a text of any length, from its definition: NumPy in float64, segment after segment, no code of the product."""

import math
from collections.abc import Iterator

import numpy as np

Weights = dict[str, np.ndarray]
"""A decoder's state dict in float64."""


def layer_norm(x: np.ndarray, weights: Weights, name: str) -> np.ndarray:
    centred = x - x.mean(axis=-1, keepdims=True)
    scale = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-5)
    return centred / scale * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def turned(x: np.ndarray, first: int, base: float) -> np.ndarray:
    """Each head's pairs (2j, 2j + 1), in (n, heads, width), rotated by position * base^(-2j / width)."""
    n, _, width = x.shape
    angles = np.outer(np.arange(first, first + n), base ** (-np.arange(0, width, 2) / width))[:, None]
    result = np.empty_like(x)
    result[..., ::2] = x[..., ::2] * np.cos(angles) - x[..., 1::2] * np.sin(angles)
    result[..., 1::2] = x[..., ::2] * np.sin(angles) + x[..., 1::2] * np.cos(angles)
    return result


def attended(query: np.ndarray, key: np.ndarray, value: np.ndarray) -> np.ndarray:
    """The queries stand at the last of the keys' places: (m, heads, width) and (n, heads, width) each."""
    m, n = len(query), len(key)
    scores = np.einsum("qhd,khd->hqk", query, key) / math.sqrt(query.shape[2])
    scores[:, np.arange(n) > np.arange(n - m, n)[:, None]] = -np.inf
    shares = np.exp(scores - scores.max(axis=2, keepdims=True))
    return np.einsum("hqk,khd->qhd", shares / shares.sum(axis=2, keepdims=True), value)


def nats(
    weights: Weights, tokens: np.ndarray, n_layers: int, n_heads: int, segment_len: int, base: float = 10000.0
) -> Iterator[np.ndarray]:
    """The loss of each token of a text after its first, segment by segment."""
    width = weights["embed.weight"].shape[1] // n_heads
    before = [(np.empty((0, n_heads, width)),) * 2] * n_layers  # each layer's keys and values of the segment before
    for first in range(0, len(tokens) - 1, segment_len):
        targets = tokens[first + 1 : first + 1 + segment_len]
        x = weights["embed.weight"][tokens[first : first + len(targets)]]
        for layer in range(n_layers):
            name = f"layers.{layer}"
            normed = layer_norm(x, weights, f"{name}.attention_norm")
            key_value = normed @ weights[f"{name}.attention.key_value.weight"].T
            key, value = np.split(key_value.reshape(len(x), 2 * n_heads, -1), 2, axis=1)
            query = (normed @ weights[f"{name}.attention.query.weight"].T).reshape(key.shape)
            query, key = turned(query, first, base), turned(key, first, base)
            seen = [
                np.concatenate(pair) if first else pair[1] for pair in zip(before[layer], (key, value), strict=True)
            ]
            before[layer] = key, value
            joined = attended(query, *seen).reshape(x.shape)
            x = x + joined @ weights[f"{name}.attention.output.weight"].T + weights[f"{name}.attention.output.bias"]
            hidden = layer_norm(x, weights, f"{name}.mlp_norm") @ weights[f"{name}.mlp.up.weight"].T
            hidden = gelu(hidden + weights[f"{name}.mlp.up.bias"])
            x = x + hidden @ weights[f"{name}.mlp.down.weight"].T + weights[f"{name}.mlp.down.bias"]
        logits = layer_norm(x, weights, "final_norm") @ weights["head.weight"].T + weights["head.bias"]
        highest = logits.max(axis=1)
        yield np.log(np.exp(logits - highest[:, None]).sum(axis=1)) + highest - logits[np.arange(len(x)), targets]
