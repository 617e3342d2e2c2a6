"""The pre-norm decoder stack that every architecture shares: plain modules, no training.

Shapes: B batch, N input positions, T output positions (T <= N), H heads, D head width.
Every module with parameters of its own can `reset_parameters`, so that a model built on the meta device can be
materialised piece by piece.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llp.attention import rotary_table, rotate

Attend = Callable[..., Tensor]
"""An attention pattern: `attend(query, key, value, dropout_p=...)`, see `llp.attention`."""


class LayerPattern(NamedTuple):
    """What is special about one layer of an architecture."""

    attend: Attend
    """Who queries whom."""
    n_out: int | None = None
    """How many positions, the last ones, leave the layer (and query in it); None: all that enter."""


class Linear(nn.Linear):
    """A linear map with weights drawn from N(0, `std`) and zero biases."""

    def __init__(self, in_features: int, out_features: int, bias: bool = True, std: float = 0.02) -> None:
        self.std = std
        super().__init__(in_features, out_features, bias)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=self.std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class Embedding(nn.Embedding):
    """A token embedding drawn from N(0, 0.02)."""

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.02)


class Attention(nn.Module):
    """Projections and rotary embedding around an attention pattern.

    Args:
        dim: Width of the stream.
        n_heads: Number of heads; divides `dim` into heads of even width.
        pattern: The layer's attention pattern.
        dropout: Probability of dropping an attention weight in training.
        output_std: Standard deviation of the output projection's initial weights.
    """

    def __init__(self, dim: int, n_heads: int, pattern: LayerPattern, dropout: float, output_std: float) -> None:
        super().__init__()
        self.n_heads, self.pattern, self.dropout = n_heads, pattern, dropout
        self.query = Linear(dim, dim, bias=False)
        self.key_value = Linear(dim, 2 * dim, bias=False)
        self.output = Linear(dim, dim, std=output_std)

    def split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)  # (B, N, H D) -> (B, H, N, D)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, n_out: int) -> Tensor:
        """Attend from the last `n_out` positions of `x` (B, N, dim) to all of them: (B, n_out, dim)."""
        first = x.shape[1] - n_out
        query = self.split_heads(self.query(x[:, first:]))  # (B, H, n_out, D)
        key, value = map(self.split_heads, self.key_value(x).chunk(2, dim=-1))  # (B, H, N, D) each
        query, key = rotate(query, cos[first:], sin[first:]), rotate(key, cos, sin)
        attended = self.pattern.attend(query, key, value, dropout_p=self.dropout if self.training else 0.0)
        return self.output(attended.transpose(1, 2).flatten(2))  # (B, n_out, dim)


class MLP(nn.Module):
    """dim -> mlp_ratio dim -> dim with exact (erf) GELU; dropout before the second map."""

    def __init__(self, dim: int, mlp_ratio: int, dropout: float, output_std: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.up = Linear(dim, mlp_ratio * dim)
        self.down = Linear(mlp_ratio * dim, dim, std=output_std)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, dim) -> (B, N, dim)."""
        return self.down(F.dropout(F.gelu(self.up(x)), self.dropout, self.training))


class Block(nn.Module):
    """One pre-norm layer: attention and MLP, each added to the stream."""

    def __init__(
        self, dim: int, n_heads: int, pattern: LayerPattern, mlp_ratio: int, dropout: float, output_std: float
    ) -> None:
        super().__init__()
        self.n_out = pattern.n_out
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = Attention(dim, n_heads, pattern, dropout, output_std)
        self.mlp_norm = nn.LayerNorm(dim)
        self.mlp = MLP(dim, mlp_ratio, dropout, output_std)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """(B, N, dim) -> (B, n_out, dim); `cos` and `sin` are (N, D / 2)."""
        n = x.shape[1]
        n_out = n if self.n_out is None else min(self.n_out, n)
        x = x[:, n - n_out :] + self.attention(self.attention_norm(x), cos, sin, n_out)
        return x + self.mlp(self.mlp_norm(x))


class Decoder(nn.Module):
    """Embedding, blocks, final norm and head on the positions that leave the last block.

    Args:
        vocab_size: Number of tokens.
        dim: Width of the stream.
        n_heads: Number of heads.
        patterns: One attention pattern per layer.
        mlp_ratio: Width of the MLP over `dim`.
        dropout: Probability, on attention weights and inside the MLP.
        rotary_base: Base of the rotary frequencies.
        tie_embeddings: Whether the head's weight is the embedding.
    """

    def __init__(
        self,
        vocab_size: int,
        dim: int,
        n_heads: int,
        patterns: Sequence[LayerPattern],
        mlp_ratio: int,
        dropout: float,
        rotary_base: float,
        tie_embeddings: bool,
    ) -> None:
        super().__init__()
        self.head_dim, self.rotary_base = dim // n_heads, rotary_base
        # Two maps a layer write into the stream; scaled so, its variance does not grow with depth.
        output_std = 0.02 / (2 * len(patterns)) ** 0.5
        self.embed = Embedding(vocab_size, dim)
        self.layers = nn.ModuleList(
            Block(dim, n_heads, pattern, mlp_ratio, dropout, output_std) for pattern in patterns
        )
        self.final_norm = nn.LayerNorm(dim)
        self.head = Linear(dim, vocab_size)
        if tie_embeddings:
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """Logits of the next token, or the loss for given next tokens.

        Args:
            tokens: (B, N) int64.
            targets: (B, S) int64, the tokens after the last S positions. Where S > T, the last T are taken.

        Returns:
            Without targets the logits (B, T, vocab_size); with them the loss in nats, (B, min(S, T)), in float32 or
            better. The loss is computed in here so that a sharded head is used where its weights are gathered.
        """
        x = self.embed(tokens)  # (B, N, dim)
        cos, sin = rotary_table(tokens.shape[1], self.head_dim, self.rotary_base, like=x)
        for block in self.layers:
            x = block(x, cos[: x.shape[1]], sin[: x.shape[1]])  # (B, n_out, dim)
        if targets is None:
            return self.head(self.final_norm(x))  # (B, T, vocab_size)
        n_scored = min(targets.shape[1], x.shape[1])
        logits = self.head(self.final_norm(x[:, x.shape[1] - n_scored :]))  # (B, n_scored, vocab_size)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        targets = targets[:, targets.shape[1] - n_scored :]
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(targets)
