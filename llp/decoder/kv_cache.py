"""Key-value caches: what a model keeps of a text so that it can continue without reading it again.

Shapes: B batch, H heads, D head width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from llp.decoder.geometry import Geometry, LayerLengths
from llp.decoder.patterns import AttentionPattern


class LayerCache:
    """The keys and values that a layer's later queries can still see, in buffers that are filled in place.

    Each position is written once and occasionally moved to the front of the buffer: a constant cost per position. If
    the pattern is local, the buffers don't grow with the text.

    Args:
        pattern: The layer's pattern, in the window that is read.
        n_heads: H.
        lengths: The layer's lengths in the full window, even while it is still filling.
        batch_size: B, the number of sequences that are read in parallel.
    """

    def __init__(self, pattern: AttentionPattern, n_heads: int, lengths: LayerLengths, batch_size: int = 1) -> None:
        self.pattern, self.n_heads, self.lengths, self.batch_size = pattern, n_heads, lengths, batch_size
        self.n_seen = 0
        """Number of positions added since the window began."""
        self._base = 0  # the position at the front of the buffers
        self._buffers: list[Tensor] = []  # keys and values, or a single one if they are shared

    def n_out(self, n: int) -> int:
        """Number of the next `n` positions that leave the layer."""
        first_out = self.lengths.n_in - self.lengths.n_out
        return min(n, self.n_seen + n - first_out)

    def first_kept(self, n: int) -> int:
        """The first position that queries from position `n` on can see."""
        return self.pattern.first_kept(self.n_heads, n)

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add the next n positions, and return all positions that their queries can see, the n added ones last.

        Args:
            key: (B, H, n, D).
            value: (B, H, n, D); may be the same tensor.

        Returns:
            Keys and values (B, H, N, D), views of the buffers that are valid until the next call.
        """
        added = [key] if value is key else [key, value]
        first, end = self.first_kept(self.n_seen), self.n_seen + key.shape[2]
        if self.first_kept(end) > self.n_seen:
            return self._start_anew(added, first, end)
        if not self._buffers or end - self._base > self._buffers[0].shape[2]:
            self._make_room(added, first, end)
        for buffer, tensor in zip(self._buffers, added, strict=True):
            buffer[:, :, self.n_seen - self._base : end - self._base] = tensor
        self.n_seen = end
        views = [buffer[:, :, first - self._base : end - self._base] for buffer in self._buffers]
        return views[0], views[-1]

    def _start_anew(self, added: Sequence[Tensor], first: int, end: int) -> tuple[Tensor, Tensor]:
        """Keep only the last of the added positions, so that a long piece of text doesn't need long buffers."""
        seen = added
        if first < self.n_seen:
            kept = [buffer[:, :, first - self._base : self.n_seen - self._base] for buffer in self._buffers]
            seen = [torch.cat(parts, dim=2) for parts in zip(kept, added, strict=True)]
        self._base = self.first_kept(end)
        self._buffers = [tensor[:, :, self._base - self.n_seen :].clone() for tensor in added]
        self.n_seen = end
        return seen[0], seen[-1]

    def select(self, rows: Sequence[int]) -> None:
        """Continue with the sequences at these indices; see `KVCache.select`."""
        self.batch_size = len(rows)
        self._buffers = [buffer[rows] for buffer in self._buffers]

    def _make_room(self, added: Sequence[Tensor], first: int, end: int) -> None:
        """Move what is still needed to the front of the buffers; allocate longer ones if there is too little room."""
        kept = [buffer[:, :, first - self._base : self.n_seen - self._base] for buffer in self._buffers]
        n_needed = end - first
        if not self._buffers or 2 * n_needed > self._buffers[0].shape[2]:
            batch, n_heads, _, head_dim = added[0].shape
            self._buffers = [tensor.new_empty(batch, n_heads, 2 * n_needed, head_dim) for tensor in added]
        else:
            kept = [tensor.clone() for tensor in kept]  # source and destination may overlap
        for buffer, tensor in zip(self._buffers, kept, strict=False):
            buffer[:, :, : tensor.shape[2]] = tensor
        self._base = first


class KVCache:
    """What a model keeps of a text that it reads piece by piece with `LanguageModel.new_cache` and `extend`.

    With a window, positions are predicted from the windows that would score them. When the window moves on, the text in
    the new window is read again, so its tokens are kept as well.

    Args:
        geometry: The layers.
        batch_size: B, the number of sequences that are read in parallel.
        window: Length and stride of scoring windows; None for a single window of unlimited length.
    """

    def __init__(self, geometry: Geometry, batch_size: int, window: tuple[int, int] | None) -> None:
        self.geometry, self.batch_size, self.window = geometry, batch_size, window
        self.n_read = 0
        """Number of tokens read."""
        self.span: tuple[int, int] | None = None
        """Start and stop of the window that `layers` belongs to; None before anything is computed."""
        self.layers: list[LayerCache] = []
        self._tokens: Tensor | None = None  # buffer of tokens, if the window can move; `_n_tokens` of them are used
        self._n_tokens = 0

    def clear(self, span: tuple[int, int]) -> None:
        """Discard the layers' caches and begin the window with this start and stop."""
        self.span = span
        lengths = self.geometry.lengths(span[1] - span[0])
        self.layers = [
            LayerCache(layer.pattern.in_window(one.n_in), self.geometry.n_heads, one, self.batch_size)
            for layer, one in zip(self.geometry.layers, lengths, strict=True)
        ]

    def select(self, rows: Sequence[int]) -> None:
        """Continue with the sequences at these indices, in this order; an index may repeat."""
        self.batch_size = len(rows)
        if self._tokens is not None:
            self._tokens = self._tokens[rows]
        for layer in self.layers:
            layer.select(rows)

    def remember(self, tokens: Tensor) -> None:
        """Count tokens (B, n) as read, and keep them as long as a window can hold them."""
        self.n_read += tokens.shape[1]
        if self.window is None:
            return
        n = self._n_tokens + tokens.shape[1]
        if self._tokens is not None and n <= self._tokens.shape[1]:
            self._tokens[:, self._n_tokens : n] = tokens
        else:
            kept = [] if self._tokens is None else [self._tokens[:, : self._n_tokens]]
            last = torch.cat((*kept, tokens), dim=1)[:, -self.window[0] :]
            n = last.shape[1]
            self._tokens = torch.cat((last, last.new_empty(len(last), self.window[0])), dim=1)
        self._n_tokens = n

    def tokens_from(self, start: int) -> Tensor:
        """The tokens (B, n) from position `start` on, which must be in the window."""
        assert self._tokens is not None
        return self._tokens[:, self._n_tokens - (self.n_read - start) : self._n_tokens]
