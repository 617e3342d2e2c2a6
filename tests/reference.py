"""The architectures by brute force, from their definition: loops over positions, float64, no code of the product.

`weights` is a decoder's state dict in float64; one sequence of tokens at a time.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

Visible = Callable[[int], list[int]]
"""The positions that position i of a layer attends to."""


def transformer_sees(i: int) -> list[int]:
    return list(range(i + 1))


def llp_sees(segment_len: int) -> Visible:
    def sees(i: int) -> list[int]:
        segment = i // segment_len
        previous = [j for j in range(i) if j // segment_len == segment - 1]
        own = [j for j in range(i + 1) if j // segment_len == segment]
        return previous + own

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
    weights: dict[str, Tensor], tokens: list[int], n_layers: int, n_heads: int, sees: Visible, base: float = 10000.0
) -> Tensor:
    """Logits at every position: (N, vocab_size)."""
    stream = [weights["embed.weight"][token] for token in tokens]
    dim = len(stream[0])
    width = dim // n_heads
    for number in range(n_layers):
        layer = {
            k.removeprefix(f"layers.{number}."): v for k, v in weights.items() if k.startswith(f"layers.{number}.")
        }
        normed = [layer_norm(x, layer["attention_norm.weight"], layer["attention_norm.bias"]) for x in stream]
        queries = [layer["attention.query.weight"] @ x for x in normed]
        keys = [layer["attention.key_value.weight"][:dim] @ x for x in normed]
        values = [layer["attention.key_value.weight"][dim:] @ x for x in normed]
        after_attention = []
        for i, x in enumerate(stream):
            heads = []
            for head in range(n_heads):
                part = slice(head * width, (head + 1) * width)
                query = turn(queries[i][part], i, base)
                seen = sees(i)
                scores = torch.stack([query @ turn(keys[j][part], j, base) / math.sqrt(width) for j in seen])
                shares = torch.exp(scores - scores.max())
                shares = shares / shares.sum()
                heads.append(sum(share * values[j][part] for share, j in zip(shares, seen, strict=True)))
            output = layer["attention.output.weight"] @ torch.cat(heads) + layer["attention.output.bias"]
            after_attention.append(x + output)
        stream = []
        for x in after_attention:
            hidden = layer["mlp.up.weight"] @ layer_norm(x, layer["mlp_norm.weight"], layer["mlp_norm.bias"])
            hidden = gelu(hidden + layer["mlp.up.bias"])
            stream.append(x + layer["mlp.down.weight"] @ hidden + layer["mlp.down.bias"])
    normed = [layer_norm(x, weights["final_norm.weight"], weights["final_norm.bias"]) for x in stream]
    return torch.stack([weights["head.weight"] @ x + weights["head.bias"] for x in normed])
