"""The pre-norm decoder stack that every architecture shares: plain modules, no training.

Shapes: B batch, N input positions, T output positions (T <= N), H heads, D head width.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import register_fsdp_forward_method
from torch.utils.checkpoint import checkpoint

from llp.decoder.block import Block, DecoderSettings, Embedding, Linear, last_positions
from llp.decoder.kv_cache import LayerMemory, Memory
from llp.decoder.loss import Losses, linear_cross_entropy
from llp.decoder.patterns import LayerPattern
from llp.decoder.rotary import rotary_table
from llp.errors import require


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
