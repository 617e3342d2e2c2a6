"""One layer of the decoder: attention with a pattern, and an MLP.

Shapes: B batch, N input positions, H heads, D head width.
Every module with parameters of its own implements `reset_parameters`, so that a model built on the meta device can be
materialized piece by piece.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llp.decoder.geometry import LayerLengths
from llp.decoder.kv_cache import LayerCache
from llp.decoder.patterns import CausalAttention, Layer, drop_history
from llp.decoder.rotary import rotate
from llp.decoder.small_batch_linear import is_small_batch, small_batch_linear
from llp.errors import require


@dataclass(frozen=True)
class DecoderSettings:
    """The size and the options of a decoder; `LanguageModel` documents each of them.

    Raises:
        SettingError: If a value can't be used.
    """

    vocab_size: int
    dim: int = 512
    n_heads: int = 8
    mlp_ratio: int = 4
    dropout: float = 0.0
    rotary_base: float = 10000.0
    tie_embeddings: bool = False
    share_key_value: bool = False
    key_value_norm: bool = False
    rotary_first_layer_only: bool = False
    initialization: Literal["normal", "torch"] = "normal"
    activation_checkpointing: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        for name in ("vocab_size", "dim", "n_heads", "mlp_ratio"):
            require(getattr(self, name) >= 1, name, getattr(self, name), "set it to 1 or more")
        dim, n_heads = self.dim, self.n_heads
        require(dim % n_heads == 0, "dim", dim, f"n_heads = {n_heads} must divide it; change one of the two")
        is_even = dim // n_heads % 2 == 0
        require(is_even, "dim", dim, f"dim / n_heads must be even for rotary pairs; here {dim // n_heads}")
        base = self.rotary_base
        require(0 < base < math.inf, "rotary_base", base, "set it to a finite number above 0")
        require(0 <= self.dropout < 1, "dropout", self.dropout, "set it to 0 or more and less than 1")
        remedy = "it normalizes a shared projection; set share_key_value, too, or leave it out"
        is_shared = self.share_key_value or not self.key_value_norm
        require(is_shared, "key_value_norm", self.key_value_norm, remedy)

    def std(self, scale: float = 1.0) -> float | None:
        """Standard deviation of the initial weights, or None for torch's own initialization."""
        return 0.02 * scale if self.initialization == "normal" else None


Compressor = Callable[[Tensor], Tensor]
"""Shortens the history of (B, N, dim)."""


class Linear(nn.Linear):
    """A linear map with weights from N(0, `std`²) and zero biases; torch's own initialization if `std` is None."""

    def __init__(self, in_features: int, out_features: int, std: float | None, bias: bool = True) -> None:
        self.std = std
        super().__init__(in_features, out_features, bias)

    def reset_parameters(self) -> None:
        if self.std is None:
            return super().reset_parameters()
        nn.init.normal_(self.weight, std=self.std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)
        return None

    def forward(self, input: Tensor) -> Tensor:
        if is_small_batch(input):
            return small_batch_linear(input, self.weight, self.bias)
        return super().forward(input)


class Embedding(nn.Embedding):
    """A token embedding drawn from N(0, `std`²); torch's own initialization if `std` is None."""

    def __init__(self, num_embeddings: int, embedding_dim: int, std: float | None) -> None:
        self.std = std
        super().__init__(num_embeddings, embedding_dim)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=1.0 if self.std is None else self.std)


class Attention(nn.Module):
    """Attention with a pattern: projections, rotary embedding and an optional key-value norm.

    Args:
        settings: The decoder's settings.
        layer: The layer's pattern.
        rotary: Whether this layer rotates its queries and keys.
        output_std: Standard deviation of the output projection's initial weights.
    """

    def __init__(self, settings: DecoderSettings, layer: Layer, rotary: bool, output_std: float | None) -> None:
        super().__init__()
        dim, std = settings.dim, settings.std()
        self.n_heads, self.dropout = settings.n_heads, settings.dropout
        self.pattern, self.history_dropout = layer.pattern, layer.history_dropout
        remedy = f"it renumbers the keys, but {type(layer.pattern).__name__} depends on their numbers; set it to 0"
        can_drop = layer.history_dropout == 0 or isinstance(layer.pattern, CausalAttention)
        require(can_drop, "history_dropout", layer.history_dropout, remedy)
        self.rotary, self.share_key_value = rotary, settings.share_key_value
        self.query = Linear(dim, dim, std, bias=False)
        self.key_value = Linear(dim, dim if settings.share_key_value else 2 * dim, std, bias=False)
        self.key_value_norm = nn.LayerNorm(dim // settings.n_heads) if settings.key_value_norm else None
        self.output = Linear(dim, dim, output_std)

    def forward(self, x: Tensor, rotations: Tensor, n_out: int, caches: Sequence[LayerCache] = ()) -> Tensor:
        """Attend from the last `n_out` positions of `x` (B, N, dim) to all of them: (B, n_out, dim).

        If caches are given, the cached positions are attended to as well. Each cache holds some of the sequences.
        """
        n_history = x.shape[1] - n_out
        query = self.split_heads(self.query(last_positions(x, n_out)))  # (B, n_out, H, D)
        key, value = self.keys_and_values(x, rotations)  # (B, N, H, D) each
        if self.rotary:
            query = rotate(query, rotations[..., n_history:, :])
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)  # (B, H, N, D)
        if caches:
            attended = _with_caches(query, key, value, caches)  # (B, H, n_out, D)
        else:
            pattern = self.pattern.in_window(x.shape[1])
            if self.training and self.history_dropout:
                key, value = drop_history(key, value, n_history, self.history_dropout)
            attended = pattern.attend(query, key, value, dropout_p=self.dropout if self.training else 0.0)
        return self.output(attended.transpose(1, 2).flatten(2))  # (B, n_out, dim)

    def keys_and_values(self, x: Tensor, rotations: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all positions, (B, N, H, D) each; if shared, the same rotated and normalized tensor."""
        projected = self.key_value(x)
        key, value = (projected, projected) if self.share_key_value else projected.chunk(2, dim=-1)
        key = self.split_heads(key)
        if self.rotary:
            key = rotate(key, rotations)
        if self.key_value_norm is not None:
            key = self.key_value_norm(key).type_as(key)  # on CUDA, autocast returns it in float32
        return key, key if self.share_key_value else self.split_heads(value)

    def split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.n_heads, -1))  # (B, N, H D) -> (B, N, H, D)


def _with_caches(query: Tensor, key: Tensor, value: Tensor, caches: Sequence[LayerCache]) -> Tensor:
    """Attend from the sequences of each cache to the cached positions and to their own: (B, H, n_out, D)."""
    sizes = [cache.batch_size for cache in caches]
    keys = key.split(sizes)
    values = keys if value is key else value.split(sizes)
    parts = zip(query.split(sizes), keys, values, caches, strict=True)
    attended = [cache.pattern.attend(own, *cache.extend(key, value)) for own, key, value, cache in parts]
    return attended[0] if len(attended) == 1 else torch.cat(attended)


class MLP(nn.Module):
    """dim -> mlp_ratio dim -> dim with exact (erf) GELU; dropout before the second map."""

    def __init__(self, settings: DecoderSettings, output_std: float | None) -> None:
        super().__init__()
        self.dropout = settings.dropout
        self.up = Linear(settings.dim, settings.mlp_ratio * settings.dim, settings.std())
        self.down = Linear(settings.mlp_ratio * settings.dim, settings.dim, output_std)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) -> (B, N, dim)."""
        return self.down(F.dropout(F.gelu(self.up(x)), self.dropout, self.training))


def last_positions(x: Tensor, n: int) -> Tensor:
    """The last `n` positions of (B, N, dim). If these are all, `x` itself, which saves a copy in the backward pass."""
    return x if n == x.shape[1] else x[:, x.shape[1] - n :]


class Block(nn.Module):
    """One pre-norm layer: attention and MLP, each added to the residual stream."""

    def __init__(self, settings: DecoderSettings, layer: Layer, rotary: bool, output_std: float | None) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(settings.dim)
        self.attention = Attention(settings, layer, rotary, output_std)
        self.mlp_norm = nn.LayerNorm(settings.dim)
        self.mlp = MLP(settings, output_std)

    def forward(self, x: Tensor, rotations: Tensor, n_out: int, compress: Compressor | None = None) -> Tensor:
        """Compute the last `n_out` positions: (B, N, dim) -> (B, n_out, dim).

        Args:
            x: (B, N, dim).
            rotations: (N, D / 2), the positions' `rotary_table`.
            n_out: Number of last positions that are queries and leave the layer.
            compress: Applied between attention and MLP, if given. The positions that it returns leave the layer.
        """
        return self._rest(last_positions(x, n_out) + self.attention(self.attention_norm(x), rotations, n_out), compress)

    def extend(
        self,
        x: Tensor,
        rotations: Tensor,
        n_out: int,
        caches: Sequence[LayerCache],
        compress: Compressor | None = None,
    ) -> Tensor:
        """Like `forward`, for the next positions (B, n, dim), with the earlier ones in `caches`.

        Each cache holds some of the sequences and is extended by their new positions. `rotations` are (n, D / 2), or
        (B, n, D / 2) if the sequences are at different positions.
        """
        attended = self.attention(self.attention_norm(x), rotations, n_out, caches)
        return self._rest(last_positions(x, n_out) + attended, compress)

    def _rest(self, x: Tensor, compress: Compressor | None) -> Tensor:
        x = x if compress is None else compress(x)
        return x + self.mlp(self.mlp_norm(x))

    def flops(self, lengths: LayerLengths, pairs: float) -> int:
        """FLOPs of the forward pass of one sequence with this many query-key pairs per head."""
        attention = self.attention
        projections = lengths.n_out * (attention.query.weight.numel() + attention.output.weight.numel())
        projections += lengths.n_in * attention.key_value.weight.numel()
        scores_and_values = int(2 * pairs * attention.query.out_features)
        mlp = lengths.n_mlp * (self.mlp.up.weight.numel() + self.mlp.down.weight.numel())
        return 2 * (projections + scores_and_values + mlp)
