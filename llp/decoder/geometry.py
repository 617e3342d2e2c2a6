"""The geometry of an architecture: what each position reads, which positions have a loss, and scoring windows.

It follows from the layers alone, without weights. Lengths and positions are numbers of tokens.
"""

import math
import sys
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from llp.decoder.patterns import AttentionPattern, Layer, lag_table
from llp.errors import SettingError, require


@dataclass(frozen=True)
class Compression:
    """Shortening of the history between the first layer's attention and its MLP.

    Attributes:
        history_len: h, the longest history.
        compressed_len: c, the length after compression of every history, also of one shorter than h.
        latent_len: l, the number of last positions, which pass unchanged.
    """

    history_len: int
    compressed_len: int
    latent_len: int

    def positions_out(self, n: int) -> int:
        """The number of positions after compression of `n` positions."""
        return self.compressed_len + self.latent_len if n > self.latent_len else n


class LayerLengths(NamedTuple):
    """The positions that a layer computes."""

    first: int
    """Index of the first position, for rotary embedding."""
    n_in: int
    """Number of positions that enter the layer."""
    n_out: int
    """Number of last positions that are queries of its attention."""
    n_mlp: int
    """Number of positions that enter its MLP and leave the layer."""


@dataclass(frozen=True)
class Geometry:
    """The layers of an architecture, and what follows from them.

    Attributes:
        layers: The layers from first to last.
        n_heads: Number of attention heads.
        compression: How the history is shortened; None if it is not.
        rotates_values: Whether values are rotated, too (`share_key_value`). The output at a position then depends on
            where its window begins.
    """

    layers: tuple[Layer, ...]
    n_heads: int
    compression: Compression | None = None
    rotates_values: bool = False

    def __post_init__(self) -> None:
        for layer in self.layers:
            layer.pattern.check_definition()

    # Positions of a window

    @property
    def latent_len(self) -> int | None:
        """Number of last positions that have a loss; None if all positions have one."""
        return min((layer.n_out for layer in self.layers if layer.n_out is not None), default=None)

    def positions_out(self, n: int) -> int:
        """T, the number of positions out of `n` that can have a loss: the last ones, which leave all layers."""
        return n if self.latent_len is None else min(n, self.latent_len)

    def lengths(self, n: int, n_last: int | None = None) -> list[LayerLengths]:
        """The positions that each layer computes for `n` tokens if only the last `n_last` outputs are needed.

        By default all T are needed. Positions that don't affect these outputs are skipped, so with local patterns each
        layer computes fewer positions than the one before. With latents or a compressed history, nothing is skipped.
        """
        if n_last is not None and n_last < n and self.latent_len is None and self.compression is None:
            # The first position that leaves each layer, from the last layer to the first; at least one leaves.
            wanted = [n - max(1, n_last)]
            for layer in reversed(self.layers[1:]):
                wanted.append(layer.pattern.first_kept(self.n_heads, wanted[-1]))
            firsts = [0, *reversed(wanted)]
            return [LayerLengths(first, n - first, n - out, n - out) for first, out in pairwise(firsts)]
        lengths: list[LayerLengths] = []
        for number, layer in enumerate(self.layers):
            # Each layer numbers its positions from 0.
            n_out = n_mlp = n if layer.n_out is None else min(layer.n_out, n)
            if number == 0 and self.compression is not None:
                n_mlp = self.compression.positions_out(n_out)
            lengths.append(LayerLengths(0, n, n_out, n_mlp))
            n = n_mlp
        return lengths

    def pair_count(self, n: int, n_last: int | None = None) -> float:
        """Number of unmasked query-key pairs per head for a sequence of `n` tokens, summed over the layers.

        If the heads differ, it is their mean. If only the last `n_last` positions have a loss, only the pairs that
        affect them are counted.
        """
        return sum(self.layer_pairs(n, n_last))

    def layer_pairs(self, n: int, n_last: int | None = None) -> list[float]:
        """`pair_count` of each layer."""
        return [
            layer.pattern.in_window(lengths.n_in).pair_count(self.n_heads, lengths.n_out, lengths.n_in)
            for layer, lengths in zip(self.layers, self.lengths(n, n_last), strict=True)
        ]

    def edges(self, n: int) -> list[int]:
        """The positions out of `n` at which the pattern changes, where leaks are most likely.

        These are the starts of units, the first latent, and positions at which a head starts to drop keys.
        """
        found: set[int] = set() if self.latent_len is None else {n - self.latent_len}
        for layer, lengths in zip(self.layers, self.lengths(n), strict=True):
            pattern, offset = layer.pattern.in_window(lengths.n_in), n - lengths.n_in
            if (pattern.unit or 1) > 1:
                found |= {offset + start for start in range(0, lengths.n_in, pattern.unit or 1)}
            steps = F.pad(pattern.first_visible(self.n_heads, lengths.n_in).diff(dim=1), (1, 0))  # (1 or H, n)
            changes = (F.pad(steps.diff(dim=1), (1, 0)) > 0).any(dim=0)
            found |= {offset + position for position in changes.nonzero().flatten().tolist()}
        return sorted(position for position in found if 0 < position < n)

    def context_lens(self, n: int) -> Tensor:
        """Number of tokens that each of `n` positions predicts from, itself included: (n,) int64.

        The tokens are counted from the first one that the position depends on through all layers. For a position
        without a loss, all tokens up to the position are counted.
        """
        lengths = self.lengths(n)
        n_scored = self.positions_out(n)
        first = torch.arange(lengths[-1].n_out - n_scored, lengths[-1].n_out)  # indices in the output of a layer
        for number in reversed(range(len(lengths))):
            if number == 0 and self.compression is not None:  # latents keep their distance to the end
                n_after, n_before = lengths[0].n_mlp, lengths[0].n_out
                first = torch.where(first < n_after - self.compression.latent_len, 0, first + n_before - n_after)
            first = first + lengths[number].n_in - lengths[number].n_out
            seen = self.layers[number].pattern.in_window(lengths[number].n_in)
            lowest = seen.first_visible(self.n_heads, lengths[number].n_in).amin(dim=0)
            # Other layers may read everything in between, so the minimum over all later positions is a safe bound.
            first = lowest.flip(0).cummin(0).values.flip(0)[first]
        contexts = torch.arange(1, n + 1)
        contexts[n - n_scored :] -= first
        return contexts

    def reads(self, n: int) -> Tensor:
        """Which of `n` tokens each position with a loss depends on, as the product of all masks: (T, n) booleans."""
        reads = torch.eye(n, dtype=torch.float32)
        for number, (layer, lengths) in enumerate(zip(self.layers, self.lengths(n), strict=True)):
            heads = layer.pattern.in_window(lengths.n_in).mask(self.n_heads, lengths.n_out, lengths.n_in)
            itself = torch.eye(lengths.n_in, dtype=torch.float32)[
                lengths.n_in - lengths.n_out :
            ]  # through the residual stream
            reads = (heads.any(dim=0) + itself).clamp(max=1) @ reads
            if number == 0 and self.compression is not None and lengths.n_out > self.compression.latent_len:
                n_history = lengths.n_out - self.compression.latent_len
                compressed = reads[:n_history].sum(dim=0).expand(self.compression.compressed_len, -1)
                reads = torch.cat((compressed, reads[n_history:]))
            reads = (reads > 0).float()
        return reads > 0

    # Consecutive windows

    @property
    def unit(self) -> int:
        """Windows must start at multiples of this number of positions to give the results of one pass."""
        return math.lcm(*(layer.pattern.unit or 1 for layer in self.layers))

    @cached_property
    def reach(self) -> int | None:
        """Number of positions before its unit on which a position can depend, in whole units; None if unbounded."""
        if self.latent_len is not None or self.compression is not None:
            return None
        first = torch.arange(self.unit)
        for layer in reversed(self.layers):
            if layer.pattern.unit is None or layer.pattern.reach is None:
                return None
            first = torch.minimum(first, _earliest(layer.pattern, self.n_heads, first))
        return math.ceil(-int(first.min()) / self.unit) * self.unit

    def scores_as_one_pass(self, window_len: int, stride: int) -> bool:
        """Whether scoring in windows gives exactly the result of one pass over the whole text."""
        return self.reach is not None and window_len >= self.reach + stride and not self.rotates_values

    def scoring_window(
        self, train_window_len: int, window_len: int | None = None, stride: int | None = None
    ) -> tuple[int, int]:
        """Length and stride of the windows that score a text. Each window scores the tokens after the previous one.

        By default, windows are as long as in training, and the stride is half their length, so that each token has at
        least that much context. With latents, the stride is at most their number. With a finite reach, windows are
        twice as long as the reach, so that scores are exactly those of one pass over the text. If windows are shorter,
        or if values are rotated, scores depend on where the windows begin, so reports state length and stride.

        Args:
            train_window_len: The number of positions of a training window.
            window_len: The requested length, or None for the default.
            stride: The requested stride, or None for the default.

        Raises:
            SettingError: If the architecture can't be trained or scored with these windows.
        """
        for pattern in {layer.pattern for layer in self.layers}:
            pattern.check_window(train_window_len)
        self._check_longest("window_len", train_window_len)
        if self.latent_len is not None:
            stride = self._latent_stride(self.latent_len, train_window_len, window_len, stride)
        elif self.reach is not None:
            self._check_aligned("scoring_window_len", window_len)
            self._check_aligned("scoring_stride", stride)
            window_len, stride = _windows_with_reach(self.reach, self.unit, window_len, stride)
        window_len = train_window_len if window_len is None else window_len
        stride = max(1, window_len // 2) if stride is None else stride
        require(window_len >= 1, "scoring_window_len", window_len, "set it to 1 or more")
        require(
            1 <= stride <= window_len, "scoring_stride", stride, f"set it to 1 .. {window_len}, the window's length"
        )
        self._check_longest("scoring_window_len", window_len)
        return window_len, stride

    def _latent_stride(self, latent_len: int, train_window_len: int, window_len: int | None, stride: int | None) -> int:
        remedy = f"window_len = {train_window_len} is shorter; set it to {train_window_len} or less"
        require(latent_len <= train_window_len, "latent_len", latent_len, remedy)
        if stride is None:
            return min(latent_len, window_len or train_window_len)
        remedy = f"only the latents are scored; set it to latent_len = {latent_len} or less"
        require(stride <= latent_len, "scoring_stride", stride, remedy)
        return stride

    def _check_longest(self, setting: str, length: int) -> None:
        if self.compression is not None:
            longest = self.compression.history_len + self.compression.latent_len
            require(length <= longest, setting, length, f"history_len + latent_len = {longest} is the longest input")

    def _check_aligned(self, setting: str, value: int | None) -> None:
        is_aligned = value is None or self.unit == 1 or (value >= 1 and value % self.unit == 0)
        require(is_aligned, setting, value, f"set it to a multiple of {self.unit}, after which the pattern repeats")

    def burn_in_len(self, asked: int | Literal["reach"]) -> int:
        """Number of tokens before a training window that are read without a loss.

        Args:
            asked: The number, or `reach` for all tokens that the window can depend on.

        Raises:
            SettingError: If the architecture can't be trained with it.
        """
        setting = "data.init_args.burn_in"
        if self.latent_len is not None:
            remedy = "the history before the latents already is a burn-in; set it to 0, and raise window_len instead"
            require(asked == 0, setting, asked, remedy)
            return 0
        if asked != "reach":
            remedy = "set it to 0 or more"
            if self.unit > 1:
                remedy = f"set it to a multiple of {self.unit}, after which the attention pattern repeats"
            require(asked >= 0 and asked % self.unit == 0, setting, asked, f"{remedy}, or to `reach`")
            return asked
        if self.reach is None:
            remedy = "with these settings, a position depends on all tokens before it; set it to a number"
            raise SettingError(setting, asked, remedy)
        remedy = "with share_key_value, values are rotated by their positions in the window; set it to a number"
        require(not self.rotates_values, setting, asked, remedy)
        return self.reach

    def room_without_window(self, position: int) -> int:
        """Number of positions from `position` on that a text can have without a window.

        Raises:
            SettingError: If there is none.
        """
        if self.latent_len is None:
            return sys.maxsize
        remedy = (
            f"without a window, a text can have latent_len = {self.latent_len} positions; pass a window to new_cache"
        )
        require(position < self.latent_len, "tokens", position + 1, remedy)
        return self.latent_len - position


def _earliest(pattern: AttentionPattern, n_heads: int, first: Tensor) -> Tensor:
    """The first position that any position from `first` on sees, far from the start of the window; elementwise."""
    assert pattern.unit is not None
    lags = torch.tensor(lag_table(pattern, n_heads))  # (unit,)
    lowest = torch.minimum(lags.flip(0).cummin(0).values.flip(0), lags.min() + pattern.unit)
    return first // pattern.unit * pattern.unit + lowest[first % pattern.unit]


def _windows_with_reach(reach: int, unit: int, window_len: int | None, stride: int | None) -> tuple[int, int]:
    """Length and stride of scoring windows for a finite reach.

    The default stride is the window's length minus the reach, or half the window if it is no longer than the reach. If
    no length is given, either, the stride is the reach.
    """
    if stride is None:
        if window_len is None:
            stride = reach
        elif window_len > reach:
            stride = window_len - reach
        else:
            stride = window_len // 2
        stride = max(unit, stride // unit * unit)
    return reach + stride if window_len is None else window_len, stride
