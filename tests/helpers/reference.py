"""The architectures by brute force, from their definition: loops over positions, float64, no code of the product.

`weights` is a decoder's state dict in float64; one sequence of tokens at a time.
"""

import math
from collections.abc import Callable, Container

import torch
from torch import Tensor

Sees = Callable[[int, int], list[int]]
"""The positions that position i attends to in a layer that holds n positions: `sees(i, n)`."""


def transformer_sees(i: int, n: int) -> list[int]:
    return list(range(i + 1))


def llp_sees(segment_len: int, look_back: int = 1) -> Sees:
    def sees(i: int, n: int) -> list[int]:
        segment = i // segment_len
        previous = [j for j in range(i) if segment - look_back <= j // segment_len < segment]
        own = [j for j in range(i + 1) if j // segment_len == segment]
        return previous + own

    return sees


def window_sees(window: int) -> Sees:
    def sees(i: int, n: int) -> list[int]:
        return [j for j in range(i + 1) if i - j < window]

    return sees


def shifted_sees(segment_len: int) -> Sees:
    """The half of the heads whose segments are cut half a length later; the first one is what is before that."""

    def segment(j: int) -> int:
        return (j + segment_len // 2) // segment_len

    def sees(i: int, n: int) -> list[int]:
        return [j for j in range(i + 1) if segment(j) == segment(i)]

    return sees


def double_sees(latent_len: int) -> Sees:
    def sees(i: int, n: int) -> list[int]:
        history = range(n - latent_len)
        return list(history) if i in history else list(range(i + 1))

    return sees


def split_sees(latent_len: int, segment_len: int) -> Sees:
    def sees(i: int, n: int) -> list[int]:
        history = range(n - latent_len)
        if i in history:
            return [j for j in history if j // segment_len == i // segment_len]
        return list(range(i + 1))

    return sees


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = x - x.mean()
    return centred / torch.sqrt((centred**2).mean() + 1e-5) * weight + bias


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def turn(vector: Tensor, position: int, base: float) -> Tensor:
    """Rotate one head's vector: pairs (2j, 2j + 1) by position * base^(-2j / width)."""
    turned = vector.clone()
    for j in range(len(vector) // 2):
        angle = position * base ** (-2 * j / len(vector))
        a, b = vector[2 * j], vector[2 * j + 1]
        turned[2 * j] = a * math.cos(angle) - b * math.sin(angle)
        turned[2 * j + 1] = a * math.sin(angle) + b * math.cos(angle)
    return turned


def logits(
    weights: dict[str, Tensor],
    tokens: list[int],
    n_layers: int,
    n_heads: int,
    sees: Sees,
    base: float = 10000.0,
    latent_len: int | None = None,
    latents_only: bool = False,
    rotary_first_layer_only: bool = False,
    second_half_sees: Sees | None = None,
    dense_layers: Container[int] = (),
) -> Tensor:
    """Logits at the scored positions: (T, vocab_size).

    Args:
        weights: The state dict, in float64. What it holds tells of shared or normed keys and values and of compression.
        tokens: One sequence.
        n_layers: Number of layers.
        n_heads: Number of heads.
        sees: Who attends to whom; its n is the number of positions that the layer holds.
        base: Of the rotary frequencies.
        latent_len: The last positions, which are scored; None: all.
        latents_only: Whether the history is gone after the first layer (Perceiver AR).
        rotary_first_layer_only: Whether later layers rotate nothing.
        second_half_sees: What the second half of the heads attends to; None: the same as the first.
        dense_layers: The layers in which every position attends to all before it.
    """
    stream = [weights["embed.weight"][token] for token in tokens]
    dim = len(stream[0])
    width = dim // n_heads
    for number in range(n_layers):
        prefix = f"layers.{number}."
        layer = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
        n = len(stream)
        rotates = number == 0 or not rotary_first_layer_only
        shared = len(layer["attention.key_value.weight"]) == dim
        normed = [layer_norm(x, layer["attention_norm.weight"], layer["attention_norm.bias"]) for x in stream]
        queries = [layer["attention.query.weight"] @ x for x in normed]
        keys = [layer["attention.key_value.weight"][:dim] @ x for x in normed]
        values = [layer["attention.key_value.weight"][0 if shared else dim :] @ x for x in normed]
        outputs = []
        for i in range(n):
            heads = []
            for head in range(n_heads):
                part = slice(head * width, (head + 1) * width)
                seen = (second_half_sees or sees if 2 * head >= n_heads else sees)(i, n)
                if number in dense_layers:
                    seen = range(i + 1)
                head_keys, head_values = [], []
                for j in seen:
                    key = turn(keys[j][part], j, base) if rotates else keys[j][part]
                    if "attention.key_value_norm.weight" in layer:
                        norm = layer["attention.key_value_norm.weight"], layer["attention.key_value_norm.bias"]
                        key = layer_norm(key, *norm)
                    head_keys.append(key)
                    head_values.append(key if shared else values[j][part])
                query = turn(queries[i][part], i, base) if rotates else queries[i][part]
                scores = torch.stack([query @ key / math.sqrt(width) for key in head_keys])
                shares = torch.exp(scores - scores.max())
                shares = shares / shares.sum()
                heads.append(sum(share * value for share, value in zip(shares, head_values, strict=True)))
            outputs.append(layer["attention.output.weight"] @ torch.cat(heads) + layer["attention.output.bias"])
        stream = [x + output for x, output in zip(stream, outputs, strict=True)]
        if latents_only and latent_len is not None:
            stream = stream[-latent_len:]
        if number == 0 and "compress.weight" in weights:
            stream = compress(weights["compress.weight"], stream, latent_len)
        after = []
        for x in stream:
            hidden = layer["mlp.up.weight"] @ layer_norm(x, layer["mlp_norm.weight"], layer["mlp_norm.bias"])
            hidden = gelu(hidden + layer["mlp.up.bias"])
            after.append(x + layer["mlp.down.weight"] @ hidden + layer["mlp.down.bias"])
        stream = after
    scored = stream if latent_len is None else stream[-latent_len:]
    normed = [layer_norm(x, weights["final_norm.weight"], weights["final_norm.bias"]) for x in scored]
    return torch.stack([weights["head.weight"] @ x + weights["head.bias"] for x in normed])


def compress(weight: Tensor, stream: list[Tensor], latent_len: int) -> list[Tensor]:
    """The history's positions made fewer; missing ones, at its start, are zeros."""
    history, latents = stream[:-latent_len], stream[-latent_len:]
    if not history:
        return latents
    missing = [torch.zeros_like(latents[0])] * (weight.shape[1] - len(history))
    filled = missing + history
    compressed = [sum(w * x for w, x in zip(row, filled, strict=True)) for row in weight]
    return compressed + latents
