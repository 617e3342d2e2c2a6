"""The pre-norm decoder stack that every architecture shares: plain modules, no training.

Shapes: B batch, N input positions, T output positions (T <= N), H heads, D head width.
Every module with parameters of its own implements `reset_parameters`, so that a model built on the meta device can be
materialized piece by piece.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import register_fsdp_forward_method
from torch.utils.checkpoint import checkpoint

from llp.decoder.few_rows import are_few, few_rows_linear
from llp.decoder.loss import Losses, linear_cross_entropy
from llp.decoder.memory import LayerMemory, Memory
from llp.decoder.patterns import LayerPattern, drop_history
from llp.decoder.rotary import rotary_table, rotate
from llp.errors import require


@dataclass(frozen=True)
class DecoderSettings:
    """The size and the options of a decoder; `LanguageModel` documents each of them."""

    vocab_size: int
    dim: int
    n_heads: int
    mlp_ratio: int
    dropout: float
    rotary_base: float
    tie_embeddings: bool
    share_key_value: bool
    key_value_norm: bool
    rotary_first_layer_only: bool
    initialization: Literal["normal", "torch"]
    activation_checkpointing: bool
    compile: bool

    def std(self, scale: float = 1.0) -> float | None:
        """Standard deviation of the initial weights; None: torch's own initialization."""
        return 0.02 * scale if self.initialization == "normal" else None


class Linear(nn.Linear):
    """A linear map with weights drawn from N(0, `std`²) and zero biases; `std` None: torch's own initialization."""

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
        if are_few(input):
            return few_rows_linear(input, self.weight, self.bias)
        return super().forward(input)


class Embedding(nn.Embedding):
    """A token embedding drawn from N(0, `std`²); `std` None: torch's own initialization."""

    def __init__(self, num_embeddings: int, embedding_dim: int, std: float | None) -> None:
        self.std = std
        super().__init__(num_embeddings, embedding_dim)

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=1.0 if self.std is None else self.std)


class Attention(nn.Module):
    """Projections and rotary embedding around an attention pattern.

    Args:
        settings: The decoder's settings.
        pattern: The layer's attention pattern.
        rotary: Whether this layer rotates its queries and keys.
        output_std: Standard deviation of the output projection's initial weights.
    """

    def __init__(
        self, settings: DecoderSettings, pattern: LayerPattern, rotary: bool, output_std: float | None
    ) -> None:
        super().__init__()
        dim, std = settings.dim, settings.std()
        self.n_heads, self.dropout = settings.n_heads, settings.dropout
        self.pattern, self.rotary, self.share_key_value = pattern, rotary, settings.share_key_value
        self.query = Linear(dim, dim, std, bias=False)
        self.key_value = Linear(dim, dim if settings.share_key_value else 2 * dim, std, bias=False)
        self.key_value_norm = nn.LayerNorm(dim // settings.n_heads) if settings.key_value_norm else None
        self.output = Linear(dim, dim, output_std)

    def forward(
        self,
        x: Tensor,
        rotations: Tensor,
        n_out: int,
        memories: Sequence[LayerMemory] = (),
        pattern: LayerPattern | None = None,
    ) -> Tensor:
        """Attend from the last `n_out` positions of `x` (B, N, dim) to all of them: (B, n_out, dim).

        With memories, which share out the sequences among them, also to what these keep of the positions before, with a
        pattern in place of the layer's own.
        """
        n_history = x.shape[1] - n_out
        query = self.split_heads(self.query(last_positions(x, n_out)))  # (B, n_out, H, D)
        key, value = self.keys_and_values(x, rotations)  # (B, N, H, D) each
        if self.rotary:
            query = rotate(query, rotations[..., n_history:, :])
        query, key, value = query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)  # (B, H, N, D)
        if self.training and self.pattern.history_dropout:
            key, value = drop_history(key, value, n_history, self.pattern.history_dropout)
        if pattern is None:
            attended = self.pattern.attend(query, key, value, dropout_p=self.dropout if self.training else 0.0)
        else:
            attended = _with_memories(pattern, query, key, value, memories)  # (B, H, n_out, D)
        return self.output(attended.transpose(1, 2).flatten(2))  # (B, n_out, dim)

    def keys_and_values(self, x: Tensor, rotations: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all positions, (B, N, H, D) each; if shared, one rotated and normalized tensor."""
        projected = self.key_value(x)
        key, value = (projected, projected) if self.share_key_value else projected.chunk(2, dim=-1)
        key = self.split_heads(key)
        if self.rotary:
            key = rotate(key, rotations)
        if self.key_value_norm is not None:
            key = self.key_value_norm(key).type_as(key)  # on CUDA autocast leaves it in float32
        return key, key if self.share_key_value else self.split_heads(value)

    def split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.n_heads, -1))  # (B, N, H D) -> (B, N, H, D)


def _with_memories(
    pattern: LayerPattern, query: Tensor, key: Tensor, value: Tensor, memories: Sequence[LayerMemory]
) -> Tensor:
    """Each memory's sequences attend to what it keeps and to their own positions: (B, H, n_out, D)."""
    if len(memories) == 1:
        return pattern.attend(query, *memories[0].extend(key, value))
    sizes = [memory.batch_size for memory in memories]
    keys = key.split(sizes)
    values = keys if value is key else value.split(sizes)
    parts = zip(query.split(sizes), keys, values, memories, strict=True)
    return torch.cat([pattern.attend(own, *memory.extend(key, value)) for own, key, value, memory in parts])


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
    """The last `n` positions of (B, N, dim); `x` itself if these are all, to spare the backward pass a copy."""
    return x if n == x.shape[1] else x[:, x.shape[1] - n :]


class Block(nn.Module):
    """One pre-norm layer: attention and MLP, each added to the residual stream."""

    def __init__(
        self, settings: DecoderSettings, pattern: LayerPattern, rotary: bool, output_std: float | None
    ) -> None:
        super().__init__()
        self.n_out = pattern.n_out
        self.attention_norm = nn.LayerNorm(settings.dim)
        self.attention = Attention(settings, pattern, rotary, output_std)
        self.mlp_norm = nn.LayerNorm(settings.dim)
        self.mlp = MLP(settings, output_std)

    def forward(self, x: Tensor, rotations: Tensor, n_out: int, between: nn.Module | None = None) -> Tensor:
        """(B, N, dim) -> (B, n_out, dim), the last ones.

        `rotations` (N, D / 2) is the positions' `rotary_table`; `between` precedes the MLP.
        """
        x = last_positions(x, n_out) + self.attention(self.attention_norm(x), rotations, n_out)
        if between is not None:
            x = between(x)
        return x + self.mlp(self.mlp_norm(x))

    def extend(
        self,
        x: Tensor,
        rotations: Tensor,
        memories: Sequence[LayerMemory],
        n_latents: int | None,
        between: "Compress | None" = None,
    ) -> Tensor:
        """What `forward` computes, where `memories` keep what it needs of the positions before.

        Args:
            x: (B, n, dim), the next positions.
            rotations: (n, D / 2), or (B, n, D / 2): those of these positions.
            memories: They share out the sequences, and take the positions in.
            n_latents: How many of the positions are latents; None: as many as the layer has, or all if they are fewer.
            between: Precedes the MLP.

        Returns:
            (B, n_out, dim), the positions that leave the layer.
        """
        own = self.attention.pattern
        pattern = own if n_latents is None else own.with_latents(n_latents)
        n_out = x.shape[1] if pattern.n_out is None else min(pattern.n_out, x.shape[1])
        attended = self.attention(self.attention_norm(x), rotations, n_out, memories, pattern)
        x = last_positions(x, n_out) + attended
        if between is not None:
            x = between(x, n_latents)
        return x + self.mlp(self.mlp_norm(x))

    def positions_out(self, n: int) -> int:
        """The number of positions that leave the attention if `n` enter."""
        return n if self.n_out is None else min(self.n_out, n)

    def flops(self, n: int, n_out: int, n_mlp: int) -> int:
        """FLOPs of a sequence's forward pass: `n` positions enter the layer, `n_out` query, `n_mlp` enter the MLP."""
        attention = self.attention
        projections = n_out * attention.query.weight.numel() + n * attention.key_value.weight.numel()
        projections += n_out * attention.output.weight.numel()
        scores_and_values = int(2 * attention.pattern.pair_count(n_out, n) * attention.query.out_features)
        mlp = n_mlp * (self.mlp.up.weight.numel() + self.mlp.down.weight.numel())
        return 2 * (projections + scores_and_values + mlp)


class Compress(Linear):
    """Shortens the history by one linear map along its positions, shared by all features; latents pass unchanged.

    Args:
        history_len: h, the longest history; a shorter one uses the map's last columns.
        compressed_len: c, the length of the compressed history.
        latent_len: l, the number of positions at the end that pass unchanged.
        std: Standard deviation of the initial weights; None: torch's own initialization.
    """

    def __init__(self, history_len: int, compressed_len: int, latent_len: int, std: float | None) -> None:
        super().__init__(history_len, compressed_len, std, bias=False)
        self.latent_len = latent_len

    def forward(self, x: Tensor, n_latents: int | None = None) -> Tensor:
        """(B, h' + l, dim) -> (B, c + l, dim) with h' <= h; without a history, (B, N, dim) unchanged.

        `n_latents` stands for l where a window is not full yet.

        Raises:
            SettingError: If the history is longer than h.
        """
        n_history = x.shape[1] - (self.latent_len if n_latents is None else n_latents)
        if n_history <= 0:
            return x
        longest = self.in_features + self.latent_len
        remedy = f"history_len + latent_len = {longest} is the longest input"
        require(x.shape[1] <= longest, "tokens", x.shape[1], remedy)
        weight = self.weight[:, self.in_features - n_history :]  # (c, h')
        return torch.cat((weight @ x[:, :n_history], x[:, n_history:]), dim=1)

    def n_out(self, n: int) -> int:
        """The number of positions that leave if `n` enter."""
        return self.out_features + self.latent_len if n > self.latent_len else n

    def flops(self, n: int, dim: int) -> int:
        """FLOPs of the forward pass of one sequence."""
        return 2 * self.out_features * max(0, n - self.latent_len) * dim


class LayerLengths(NamedTuple):
    """How many positions a layer computes."""

    first: int
    """The number of its first position, which rotary embedding counts from."""
    n_in: int
    """Positions that enter it."""
    n_out: int
    """Positions, the last ones, that query in its attention."""
    n_mlp: int
    """Positions that enter its MLP and leave the layer."""


class Decoder(nn.Module):
    """Embedding, blocks, final norm and head on the positions that leave the last block.

    Args:
        settings: Size and options.
        patterns: One attention pattern per layer.
        compression: Makes the module that is applied between the first layer's attention and its MLP, if there is one.
            It is made last, so that the random numbers of all other weights are those of a decoder without it.
        shard: Called with each block as soon as it is built, and with the decoder at the end, to distribute their
            parameters over the ranks: no process ever holds more than its share and one block.
    """

    def __init__(
        self,
        settings: DecoderSettings,
        patterns: Sequence[LayerPattern],
        compression: Callable[[], Compress | None] = lambda: None,
        shard: Callable[[nn.Module], object] = lambda module: None,
    ) -> None:
        super().__init__()
        self.head_dim, self.rotary_base = settings.dim // settings.n_heads, settings.rotary_base
        self.activation_checkpointing = settings.activation_checkpointing
        # Two maps per layer write into the residual stream; with this scale its variance does not grow with depth.
        output_std = settings.std(scale=(2 * len(patterns)) ** -0.5)
        self.embed = Embedding(settings.vocab_size, settings.dim, settings.std())
        self.layers = nn.ModuleList()
        for layer, pattern in enumerate(patterns):
            rotary = layer == 0 or not settings.rotary_first_layer_only
            block = Block(settings, pattern, rotary, output_std)
            if settings.compile:  # inside the hooks that sharding adds; all blocks share their code
                block.forward = torch.compile(block.forward, fullgraph=True)  # type: ignore[method-assign]
            shard(block)
            register_fsdp_forward_method(block, "extend")  # its weights are gathered there, too, if it is sharded
            self.layers.append(block)
        self.final_norm = nn.LayerNorm(settings.dim)
        self.head = Linear(settings.dim, settings.vocab_size, settings.std())
        if settings.tie_embeddings:
            self.head.weight = self.embed.weight
        self.compress = compression()
        shard(self)
        register_fsdp_forward_method(self, "extend")

    def forward(self, tokens: Tensor, targets: Tensor | None = None, places: Tensor | None = None) -> Tensor | Losses:
        """Logits of the next token, or the loss for given next tokens.

        Args:
            tokens: (B, N) int64.
            targets: (B, S) int64, the tokens after the last S positions. If S > T, only the last T are used.
            places: (B, S) int64, other positions than those, of the last T; each sequence has its own.

        Returns:
            Without targets the logits (B, T, vocab_size), at given places (B, S, vocab_size); with them the `Losses` of
            (B, min(S, T)) targets, which are computed here so that a sharded head is used while its weights are
            gathered.
        """
        x, n = self.embed(tokens), tokens.shape[1]  # (B, N, dim)
        # A history shorter than `compressed_len` becomes longer.
        n_positions = n + (0 if self.compress is None else self.compress.out_features)
        rotations = rotary_table(n_positions, self.head_dim, self.rotary_base, like=x)
        n_last = None if targets is None or places is not None else targets.shape[1]
        for layer, lengths in enumerate(self._lengths(n, n_last)):
            block, turns = self.layers[layer], rotations[lengths.first : lengths.first + x.shape[1]]
            arguments = x, turns, lengths.n_out, self.compress if layer == 0 else None
            if self.activation_checkpointing and self.training:
                x = checkpoint(block, *arguments, use_reentrant=False)  # (B, n_out, dim)
            else:
                x = block(*arguments)  # (B, n_out, dim)
        if places is not None:
            within = places - (n - x.shape[1])  # the T that are left
            x = x.take_along_dim(within.unsqueeze(2), dim=1)  # (B, S, dim)
        if targets is None:
            return self.head(self.final_norm(x))  # (B, T, vocab_size)
        n_scored = min(targets.shape[1], x.shape[1])
        x = self.final_norm(last_positions(x, n_scored))
        return linear_cross_entropy(x, self.head.weight, self.head.bias, last_positions(targets, n_scored))

    def extend(
        self, tokens: Tensor, memories: Sequence[Memory], n_latents: int | None = None, n_logits: int | None = None
    ) -> Tensor:
        """Logits of the token after each of the next positions, the ones before being in memory.

        Args:
            tokens: (B, n) int64.
            memories: They share out the sequences among them, and take the tokens in.
            n_latents: How many of the positions are latents, at the beginning of a window; None: all that can be.
            n_logits: Compute those of the last so many positions alone; None: of all that leave the last layer.

        Returns:
            (B, n_logits, vocab_size).
        """
        x, n = self.embed(tokens), tokens.shape[1]  # (B, n, dim)
        turns: dict[tuple[int, ...], Tensor] = {}
        for layer, block in enumerate(cast(Iterable[Block], self.layers)):
            of_layer = [memory.layers[layer] for memory in memories]
            starts = (x.shape[1], *(one.n_seen for one in of_layer))
            if starts not in turns:  # most layers are at the same place
                turns[starts] = self._rotations(x, of_layer)
            x = block.extend(x, turns[starts], of_layer, n_latents, self.compress if layer == 0 else None)
        x = last_positions(x, min(n if n_logits is None else n_logits, x.shape[1]))
        return self.head(self.final_norm(x))

    def _rotations(self, x: Tensor, memories: Sequence[LayerMemory]) -> Tensor:
        """The rotary table of the positions of `x` (B, n, dim), which follow those that the memories have seen."""
        n, starts = x.shape[1], {memory.n_seen for memory in memories}
        tables = {start: rotary_table(n, self.head_dim, self.rotary_base, x, start) for start in starts}
        if len(tables) == 1:
            return tables[memories[0].n_seen]  # (n, D / 2)
        return torch.cat(
            [tables[memory.n_seen].expand(memory.batch_size, -1, -1) for memory in memories]
        )  # (B, n, D / 2)

    def positions_out(self, n: int) -> int:
        """T, the number of positions that leave the last block, and can have a loss, for `n` tokens."""
        return self._lengths(n)[-1].n_mlp

    def pair_count(self, n: int, n_last: int | None = None) -> float:
        """Query-key pairs of a head in all layers of one sequence of `n` tokens, without the masked ones.

        It is the mean over the heads where these differ. If only the last `n_last` positions have a loss, those are
        counted that these need.
        """
        layers = zip(cast(Iterable[Block], self.layers), self._lengths(n, n_last), strict=True)
        return sum(block.attention.pattern.pair_count(lengths.n_out, lengths.n_in) for block, lengths in layers)

    def flops(self, n: int, n_scored: int | None = None, n_last: int | None = None) -> int:
        """FLOPs of the forward pass of one sequence of `n` tokens: two per multiplication in a matrix product.

        The head is counted at `n_scored` positions; None: at all T. The layers are counted at all positions, or, if
        only the last `n_last` have a loss, at those that these need. Pairs that a mask hides are not counted, and
        dropout of the history is disregarded. Training takes three times as many.
        """
        lengths = self._lengths(n, n_last)
        total = self.head_flops(lengths[-1].n_mlp if n_scored is None else n_scored)
        if self.compress is not None:
            total += self.compress.flops(lengths[0].n_out, self.embed.embedding_dim)
        for block, (_, n_in, n_out, n_mlp) in zip(cast(Iterable[Block], self.layers), lengths, strict=True):
            total += block.flops(n_in, n_out, n_mlp)
        return total

    def _lengths(self, n: int, n_last: int | None = None) -> list["LayerLengths"]:
        """What each layer has to compute for `n` tokens, if only the last `n_last` positions are wanted; None: all T.

        A position that nothing wanted depends on leaves its layer no more: where the patterns forget, the layers form a
        trapezoid. Latents and a compressed history are as they are.
        """
        blocks = list(cast(Iterable[Block], self.layers))
        can_forget = self.compress is None and all(block.n_out is None for block in blocks)
        if can_forget and n_last is not None and n_last < n:
            # The first position that each layer lets out, from the last layer to the first, and one at least.
            wanted = [n - max(1, n_last)]
            for block in reversed(blocks[1:]):
                wanted.append(block.attention.pattern.first_kept(wanted[-1]))
            firsts = [0, *reversed(wanted)]
            return [
                LayerLengths(first, n - first, n - first_out, n - first_out) for first, first_out in pairwise(firsts)
            ]
        lengths: list[LayerLengths] = []
        for layer, block in enumerate(blocks):
            # Each layer numbers the positions that it holds from 0.
            n_out = n_mlp = block.positions_out(n)
            if layer == 0 and self.compress is not None:
                n_mlp = self.compress.n_out(n_out)
            lengths.append(LayerLengths(0, n, n_out, n_mlp))
            n = n_mlp
        return lengths

    def head_flops(self, n: int) -> int:
        """FLOPs of the head on `n` positions."""
        return 2 * n * self.head.weight.numel()
