"""The pre-norm decoder that every architecture shares.

Shapes: B batch, N input positions, T output positions (T <= N), H heads, D head width.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import register_fsdp_forward_method
from torch.utils.checkpoint import checkpoint

from llp.decoder.block import Block, DecoderSettings, Embedding, Linear, last_positions
from llp.decoder.geometry import Compression, Geometry
from llp.decoder.kv_cache import KVCache, LayerCache
from llp.decoder.loss import Losses, linear_cross_entropy
from llp.decoder.rotary import rotary_table
from llp.errors import require


class Compress(Linear):
    """Shortens the history by a linear map along its positions, shared by all features. Latents pass unchanged.

    For a history shorter than h, only the last columns of the map are used.

    Args:
        lengths: Lengths of history, compressed history and latents.
        std: Standard deviation of the initial weights. If None, torch's own initialization is used.
    """

    def __init__(self, lengths: Compression, std: float | None) -> None:
        super().__init__(lengths.history_len, lengths.compressed_len, std, bias=False)
        self.latent_len = lengths.latent_len

    def forward(self, x: Tensor, n_history: int | None = None) -> Tensor:
        """(B, h' + l, dim) -> (B, c + l, dim) with h' <= h; an input without a history is returned unchanged.

        `n_history` is h'. It must be given if the window is not full yet and has fewer than l latents.

        Raises:
            SettingError: If the history is longer than h.
        """
        n_history = x.shape[1] - self.latent_len if n_history is None else n_history
        if n_history <= 0:
            return x
        longest = self.in_features + self.latent_len
        remedy = f"history_len + latent_len = {longest} is the longest input"
        require(n_history <= self.in_features, "tokens", x.shape[1], remedy)
        weight = self.weight[:, self.in_features - n_history :]  # (c, h')
        return torch.cat((weight @ x[:, :n_history], x[:, n_history:]), dim=1)

    def flops(self, n: int, dim: int) -> int:
        """FLOPs of the forward pass of one sequence of `n` positions."""
        return 2 * self.out_features * max(0, n - self.latent_len) * dim


class TextDecoder(nn.Module, ABC):
    """The base class of decoders, which map tokens to logits or losses, in one pass or piece by piece."""

    geometry: Geometry
    has_float64 = True
    """Whether everything is computed in float64 if the weights are."""

    @abstractmethod
    def forward(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        """Logits of the next token.

        Args:
            tokens: (B, N) int64.
            positions: (B, S) int64, the positions of each sequence at which logits are computed, among the last T. By
                default logits are computed at all of the last T positions.

        Returns:
            (B, T, vocab_size), or (B, S, vocab_size).
        """

    @abstractmethod
    def loss(self, tokens: Tensor, targets: Tensor, positions: Tensor | None = None) -> Losses:
        """The loss of given next tokens. The logits of all positions are never in memory at once.

        Args:
            tokens: (B, N) int64.
            targets: (B, S) int64, the tokens after the last S positions. If S > T, only the last T are used.
            positions: (B, S) int64, the positions of each sequence that the targets follow, if these are not the last
                S; among the last T.

        Returns:
            The losses of (B, min(S, T)) targets.
        """

    @abstractmethod
    def new_cache(self, batch_size: int, window: tuple[int, int] | None) -> KVCache:
        """An empty cache for B sequences. `window` is length and stride of scoring windows; None for a single one."""

    @abstractmethod
    def extend(self, tokens: Tensor, caches: Sequence[KVCache], n_logits: int | None = None) -> Tensor:
        """Read the next tokens of texts whose earlier tokens are cached, and compute the logits after them.

        Args:
            tokens: (B, n) int64.
            caches: Caches that hold the B sequences, in order. They are updated in place. If there are several, each
                must be past the history of its window.
            n_logits: Number of last positions for which logits are computed. By default, all that leave the last layer.

        Returns:
            (B, n_logits, vocab_size).
        """

    @abstractmethod
    def flops(self, n: int, n_scored: int | None = None, n_last: int | None = None) -> int:
        """FLOPs of the forward pass of one sequence of `n` tokens: two per multiplication in a matrix product.

        The head is counted at `n_scored` positions, by default at all T. The layers are counted at all positions or, if
        only the last `n_last` positions have a loss, at those that affect them. Pairs that a mask hides are not
        counted, and dropout of the history is disregarded. A training step takes three times as many.
        """


class Decoder(TextDecoder):
    """Embedding, blocks, final norm and head on the positions that leave the last block.

    Args:
        settings: Size and options.
        geometry: The layers.
        shard: Called with each block as soon as it is built, and finally with the decoder, to distribute the parameters
            over the ranks. So no process ever holds more than its share and one block.
    """

    def __init__(
        self,
        settings: DecoderSettings,
        geometry: Geometry,
        shard: Callable[[nn.Module], object] = lambda module: None,
    ) -> None:
        super().__init__()
        self.geometry = geometry
        self.head_dim, self.rotary_base = settings.dim // settings.n_heads, settings.rotary_base
        self.activation_checkpointing = settings.activation_checkpointing
        # Two maps per layer write into the residual stream; with this scale its variance does not grow with depth.
        output_std = settings.std(scale=(2 * len(geometry.layers)) ** -0.5)
        self.embed = Embedding(settings.vocab_size, settings.dim, settings.std())
        self.layers = nn.ModuleList()
        for number, layer in enumerate(geometry.layers):
            rotary = number == 0 or not settings.rotary_first_layer_only
            block = Block(settings, layer, rotary, output_std)
            if settings.compile:  # without the hooks that sharding adds; all blocks share the compiled code
                block.forward = torch.compile(block.forward, fullgraph=True)  # type: ignore[method-assign]
            shard(block)
            register_fsdp_forward_method(block, "extend")  # it gathers sharded weights, as `forward` does
            self.layers.append(block)
        self.final_norm = nn.LayerNorm(settings.dim)
        self.head = Linear(settings.dim, settings.vocab_size, settings.std())
        if settings.tie_embeddings:
            self.head.weight = self.embed.weight
        # Created last, so that all other weights are initialized as in a decoder without it.
        self.compress = None
        if (lengths := geometry.compression) is not None:
            self.compress = Compress(lengths, None if settings.std() is None else lengths.history_len**-0.5)
        shard(self)
        for name in ("loss", "extend"):
            register_fsdp_forward_method(self, name)

    @property
    def blocks(self) -> list[Block]:
        """The layers."""
        return [block for block in self.layers if isinstance(block, Block)]

    def forward(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        x = self._states(tokens)  # (B, T, dim)
        if positions is not None:
            x = at_positions(x, positions, tokens.shape[1])  # (B, S, dim)
        logits: Tensor = self.head(self.final_norm(x))
        return logits

    def loss(self, tokens: Tensor, targets: Tensor, positions: Tensor | None = None) -> Losses:
        x = self._states(tokens, None if positions is not None else targets.shape[1])  # (B, T, dim)
        if positions is not None:
            x = at_positions(x, positions, tokens.shape[1])
        n_scored = min(targets.shape[1], x.shape[1])
        x = self.final_norm(last_positions(x, n_scored))
        return linear_cross_entropy(x, self.head.weight, self.head.bias, last_positions(targets, n_scored))

    def _states(self, tokens: Tensor, n_last: int | None = None) -> Tensor:
        """The residual stream after the last layer, at least at the last `n_last` positions: (B, T, dim)."""
        x, n = self.embed(tokens), tokens.shape[1]  # (B, N, dim)
        # Compression lengthens a history that is shorter than `compressed_len`.
        n_positions = n + (0 if self.compress is None else self.compress.out_features)
        rotations = rotary_table(n_positions, self.head_dim, self.rotary_base, like=x)
        for number, lengths in enumerate(self.geometry.lengths(n, n_last)):
            block, turns = self.layers[number], rotations[lengths.first : lengths.first + x.shape[1]]
            arguments = x, turns, lengths.n_out, self.compress if number == 0 else None
            if self.activation_checkpointing and self.training:
                x = checkpoint(block, *arguments, use_reentrant=False)  # (B, n_out, dim)
            else:
                x = block(*arguments)  # (B, n_out, dim)
        return x

    def new_cache(self, batch_size: int, window: tuple[int, int] | None) -> KVCache:
        return KVCache(self.geometry, batch_size, window)

    def extend(self, tokens: Tensor, caches: Sequence[KVCache], n_logits: int | None = None) -> Tensor:
        x, n = self.embed(tokens), tokens.shape[1]  # (B, n, dim)
        turns: dict[tuple[int, ...], Tensor] = {}
        for number, block in enumerate(self.blocks):
            of_layer = [cache.layers[number] for cache in caches]
            starts = (x.shape[1], *(one.n_seen for one in of_layer))
            if starts not in turns:  # most layers are at the same position
                turns[starts] = self._rotations(x, of_layer)
            compress = None
            if number == 0 and self.compress is not None and of_layer[0].n_seen == 0:  # the piece with the history
                compress = partial(self.compress, n_history=of_layer[0].lengths.n_in - self.compress.latent_len)
            x = block.extend(x, turns[starts], of_layer[0].n_out(x.shape[1]), of_layer, compress)
        x = last_positions(x, min(n if n_logits is None else n_logits, x.shape[1]))
        logits: Tensor = self.head(self.final_norm(x))
        return logits

    def _rotations(self, x: Tensor, caches: Sequence[LayerCache]) -> Tensor:
        """The rotary table of `x` (B, n, dim), whose positions follow those in the caches."""
        n, starts = x.shape[1], {cache.n_seen for cache in caches}
        tables = {start: rotary_table(n, self.head_dim, self.rotary_base, x, start) for start in starts}
        if len(tables) == 1:
            return tables[caches[0].n_seen]  # (n, D / 2)
        return torch.cat([tables[cache.n_seen].expand(cache.batch_size, -1, -1) for cache in caches])  # (B, n, D / 2)

    def flops(self, n: int, n_scored: int | None = None, n_last: int | None = None) -> int:
        lengths, pairs = self.geometry.lengths(n, n_last), self.geometry.layer_pairs(n, n_last)
        total = self.head_flops(lengths[-1].n_mlp if n_scored is None else n_scored)
        if self.compress is not None:
            total += self.compress.flops(lengths[0].n_out, self.embed.embedding_dim)
        of_layers = zip(self.blocks, lengths, pairs, strict=True)
        return total + sum(block.flops(its_lengths, its_pairs) for block, its_lengths, its_pairs in of_layers)

    def head_flops(self, n: int) -> int:
        """FLOPs of the head on `n` positions."""
        return 2 * n * self.head.weight.numel()


def at_positions(x: Tensor, positions: Tensor, n: int) -> Tensor:
    """Select positions (B, S) from the residual stream (B, T, dim) of the last T of `n` positions: (B, S, dim)."""
    return x.take_along_dim((positions - (n - x.shape[1])).unsqueeze(2), dim=1)
