"""Attention patterns: which positions attend to which in a layer.

A pattern is defined by `sees`, which says which positions see which, counted from the start of the window. Everything
else is derived from it. `visible` adds causality and the declared reach. Attention, the number of query-key pairs, what
a cache must keep, the masks in plots and the brute force of the tests are computed from `visible`. A pattern may
override `attend` with a faster implementation, and a count with a formula; tests check both against `visible`.

Shapes: B batch, H heads, Q queries, N keys, D head width. The queries are the last Q of the N positions, Q <= N.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from llp.decoder.kernels.flex import flex_masked_attention, takes_flex
from llp.decoder.kernels.local import (
    causal_attention,
    segment_pair_attention,
    shifted_segment_attention,
    sliding_window_attention,
    unmasked_segment_attention,
)
from llp.errors import SettingError, require

_BLOCK_LEN = 256  # queries whose mask is held at a time


@dataclass(frozen=True)
class AttentionPattern:
    """Which positions see which in one layer. A subclass defines `sees`, and `unit` and `reach` if it is local."""

    def sees(self, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """Whether a query sees a key, apart from causality, which is added later.

        Args:
            head: Indices of heads, (H, 1, 1).
            query: Positions of queries, (Q, 1), counted from the start of the window.
            key: Positions of keys, (N,). Keys after the query need not be excluded.

        Returns:
            Booleans that broadcast to (H, Q, N). FlexAttention calls this with zero-dimensional tensors.
        """
        raise NotImplementedError

    @property
    def unit(self) -> int | None:
        """The number of positions after which the pattern repeats: sees(q + unit, k + unit) equals sees(q, k).

        None if it does not repeat, as with a pattern that keeps the first tokens of the window in sight.
        """
        return None

    @property
    def reach(self) -> int | None:
        """The largest number of positions before the start of its unit that a query can see; None if there is no bound.

        A reach requires a `unit`. The mask enforces the reach, because no finite number of probes could prove it.
        """
        return None

    @property
    def history_len(self) -> int:
        """The number of first positions that see each other without a mask. They never have a loss."""
        return 0

    def in_window(self, n: int) -> Self:
        """The pattern for a window that will have `n` positions in total, even if not all of them are there yet."""
        return self

    def check_window(self, n: int) -> None:
        """Raise a `SettingError` if training windows of `n` positions are too short for the pattern."""

    def check_definition(self) -> None:
        """Raise a `SettingError` if `unit` or `reach` can't be used, or `sees` does not compute with tensors."""
        name = type(self).__name__
        require(self.unit is None or self.unit >= 1, f"{name}.unit", self.unit, "it must be 1 or more")
        remedy = "define `unit`, too: the reach is counted from the start of a unit"
        require(self.reach is None or self.unit is not None, f"{name}.reach", self.reach, remedy)
        require(self.reach is None or self.reach >= 0, f"{name}.reach", self.reach, "it must be 0 or more")
        positions = torch.arange(2, device="cpu")  # as for masks, even where the weights are on the meta device
        try:
            self.in_window(2).sees(positions.view(2, 1, 1), positions.view(2, 1), positions)
        except RuntimeError as error:
            remedy = f"{error}; join conditions by & and | instead of `and` and `or`, negate them by ~"
            raise SettingError(f"{name}.sees", "a condition", remedy) from error

    def visible(self, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """`sees`, made causal and limited to the declared reach. Can serve as FlexAttention's `mask_mod`."""
        seen = self.sees(head, query, key) & (key <= query.clamp(min=self.history_len - 1))
        if self.unit is not None and self.reach is not None:
            seen = seen & (key >= query // self.unit * self.unit - self.reach)
        return seen

    def attend(self, query: Tensor, key: Tensor, value: Tensor, dropout_p: float = 0.0) -> Tensor:
        """Attention under this pattern, with scores scaled by 1 / sqrt(D).

        Args:
            query: (B, H, Q, D).
            key: (B, H, N, D). If the pattern has a reach, leading keys that no query sees may be left out, in multiples
                of the unit.
            value: (B, H, N, D).
            dropout_p: Probability of dropping an attention weight.

        Returns:
            (B, H, Q, D), zeros for a query that sees nothing.
        """
        return self.attend_by_definition(query, key, value, dropout_p)

    def attend_by_definition(self, query: Tensor, key: Tensor, value: Tensor, dropout_p: float = 0.0) -> Tensor:
        """The result of `attend`, computed directly from `visible`."""
        n_heads, n_queries, n_keys = query.shape[1], query.shape[2], key.shape[2]
        if takes_flex(query, dropout_p):
            return flex_masked_attention(self.visible, query, key, value)
        outputs: list[Tensor] = []
        for first, mask in self.mask_blocks(n_heads, n_queries, n_keys, query.device):
            start = len(outputs) * _BLOCK_LEN
            stop = first + mask.shape[2]
            inputs = query[:, :, start : start + _BLOCK_LEN], key[:, :, first:stop], value[:, :, first:stop]
            attended = F.scaled_dot_product_attention(*inputs, attn_mask=mask, dropout_p=dropout_p)
            outputs.append(torch.where(mask.any(dim=-1, keepdim=True), attended, 0))  # (B, H, block, D)
        return torch.cat(outputs, dim=2)

    def mask(self, n_heads: int, n_queries: int, n_keys: int) -> Tensor:
        """Which of N keys are seen by the last Q of N positions: (1, Q, N) booleans, or (H, Q, N) if heads differ."""
        return self._mask(n_heads, n_keys - n_queries, n_keys, 0, n_keys, torch.device("cpu"))

    def pair_count(self, n_heads: int, n_queries: int, n_keys: int) -> float:
        """The number of query-key pairs per head, averaged over the heads if they differ. Used to count FLOPs."""
        return _pair_count(self, n_heads, n_queries, n_keys)

    def first_visible(self, n_heads: int, n: int) -> Tensor:
        """The first position that each of `n` positions sees: (1, n) int64, or (H, n) if heads differ.

        A position that sees nothing counts as seeing itself, because the residual stream carries its own token.
        """
        return _first_visible(self, n_heads, n)

    def first_kept(self, n_heads: int, n: int) -> int:
        """The first position that queries at position `n` or later can see, rounded down to a multiple of the unit."""
        if self.unit is None or self.reach is None:
            return 0
        start, offset = n // self.unit * self.unit, n % self.unit
        lags = lag_table(self, n_heads)
        first = start + min(*lags[offset:], min(lags) + self.unit)
        return max(0, first // self.unit * self.unit)

    def mask_blocks(
        self, n_heads: int, n_queries: int, n_keys: int, device: torch.device
    ) -> Iterator[tuple[int, Tensor]]:
        """For each block of queries, the first key that it needs, and the mask from that key on."""
        for start in range(n_keys - n_queries, n_keys, _BLOCK_LEN):
            stop = min(start + _BLOCK_LEN, n_keys)
            first = 0
            if self.unit is not None and self.reach is not None:
                first = max(0, start // self.unit * self.unit - self.reach)
            last = min(n_keys, max(stop, self.history_len))
            yield first, self._mask(n_heads, start, stop, first, last, device)

    def _mask(self, n_heads: int, start: int, stop: int, first: int, last: int, device: torch.device) -> Tensor:
        """Which of the keys first .. last - 1 are seen by the queries start .. stop - 1: (1 or H, Q, N)."""
        head = torch.arange(n_heads, device=device).view(-1, 1, 1)
        query = torch.arange(start, stop, device=device).unsqueeze(1)
        seen = self.visible(head, query, torch.arange(first, last, device=device))
        return seen if seen.ndim == 3 else seen.unsqueeze(0)


class Layer(NamedTuple):
    """The specification of one layer of an architecture."""

    pattern: AttentionPattern
    """Which positions attend to which."""
    n_out: int | None = None
    """Number of last positions that are queries and form the layer's output; None for all positions."""
    history_dropout: float = 0.0
    """Fraction of the positions before the queries that is dropped from the keys in training."""


@dataclass(frozen=True)
class CausalAttention(AttentionPattern):
    """Every position sees itself and all earlier ones, as in a Transformer, and in Perceiver AR with fewer queries."""

    def sees(self, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return key <= query

    @property
    def unit(self) -> int:
        return 1

    def attend(self, query: Tensor, key: Tensor, value: Tensor, dropout_p: float = 0.0) -> Tensor:
        return causal_attention(query, key, value, dropout_p)

    def pair_count(self, n_heads: int, n_queries: int, n_keys: int) -> float:
        return n_queries * n_keys - n_queries * (n_queries - 1) // 2

    def first_visible(self, n_heads: int, n: int) -> Tensor:
        return torch.zeros(1, n, dtype=torch.int64)  # without n x n masks, which take seconds for a long window


@dataclass(frozen=True)
class SegmentAttention(AttentionPattern):
    """Long LoRA Perceiver: each segment sees itself, causally, and the `look_back` whole segments before it.

    Segments are counted from the first position on; the last one may be shorter. The cost is O(N segment_len).

    Source: arXiv 2412.06106, section on the Long LoRA Perceiver; the segments are those of LongLoRA, arXiv 2309.12307.
    """

    segment_len: int
    """Number of positions in a segment."""
    look_back: int = 1
    """Number of previous segments that each segment sees."""

    def sees(self, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return query // self.segment_len - key // self.segment_len <= self.look_back

    @property
    def unit(self) -> int:
        return self.segment_len

    @property
    def reach(self) -> int:
        return self.look_back * self.segment_len

    def check_window(self, n: int) -> None:
        remedy = f"window_len = {n} is shorter; set segment_len to {n} or less, or data.init_args.window_len higher"
        require(self.segment_len <= n, "segment_len", self.segment_len, remedy)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, dropout_p: float = 0.0) -> Tensor:
        return segment_pair_attention(query, key, value, self.segment_len, self.look_back, dropout_p)


@dataclass(frozen=True)
class ShiftedSegmentAttention(AttentionPattern):
    """Every query sees its segment, causally; in half of the heads, segments are shifted by half their length.

    The first of the shifted segments is half as long. No segment wraps around the end of the sequence.

    Source: S2-Attn of LongLoRA, arXiv 2309.12307, without the leak of its published form.
    """

    segment_len: int
    """Number of positions in a segment, an even number."""
    n_heads: int
    """Number of heads of the layer. Segments are shifted in the second half of them."""

    def sees(self, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        shift = (head >= self.n_heads // 2) * (self.segment_len // 2)
        return (query + shift) // self.segment_len == (key + shift) // self.segment_len

    @property
    def unit(self) -> int:
        return self.segment_len

    @property
    def reach(self) -> int:
        return self.segment_len // 2

    def check_window(self, n: int) -> None:
        remedy = f"window_len = {n} is shorter; set segment_len to {n} or less, or data.init_args.window_len higher"
        require(self.segment_len <= n, "segment_len", self.segment_len, remedy)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, dropout_p: float = 0.0) -> Tensor:
        if query.shape[2] == 1:  # one mask is faster than the parts of both halves
            return self.attend_by_definition(query, key, value, dropout_p)
        return shifted_segment_attention(query, key, value, self.segment_len, dropout_p)


@dataclass(frozen=True)
class SlidingWindowAttention(AttentionPattern):
    """Every position sees the last `window` positions up to and including itself. The cost is O(N window).

    Source: the sliding window of Longformer, arXiv 2004.05150, made causal.
    """

    window: int
    """Number of positions that each position sees, including itself."""

    def sees(self, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return query - key < self.window

    @property
    def unit(self) -> int:
        return 1

    @property
    def reach(self) -> int:
        return self.window - 1

    def check_window(self, n: int) -> None:
        remedy = f"window_len = {n} is shorter; set window to {n} or less, or data.init_args.window_len higher"
        require(self.window <= n, "window", self.window, remedy)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, dropout_p: float = 0.0) -> Tensor:
        return sliding_window_attention(query, key, value, self.window, dropout_p)


@dataclass(frozen=True)
class HistoryAttention(AttentionPattern):
    """The latents (the last `latent_len` positions) see everything, causally; the history before them sees itself.

    The history attends to itself without a mask. With `segment_len`, it is cut into segments from its first position
    on, and each segment sees only itself.

    Source: arXiv 2412.06106, enhancements V1 (double attention) and V2 (split attention).
    """

    latent_len: int
    """Number of latents."""
    segment_len: int | None = None
    """Number of positions in a segment of the history; None for a single segment."""
    window_len: int | None = None
    """Length of the whole window, set by `in_window`. It determines which positions are latents."""

    def in_window(self, n: int) -> Self:
        return replace(self, window_len=n)

    @property
    def history_len(self) -> int:
        if self.window_len is None:
            raise ValueError("call in_window(n) first: which positions are latents depends on the window's length")
        return max(0, self.window_len - self.latent_len)

    def sees(self, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        segment_len = self.segment_len or max(1, self.history_len)
        return (query >= self.history_len) | (query // segment_len == key // segment_len)

    def attend(self, query: Tensor, key: Tensor, value: Tensor, dropout_p: float = 0.0) -> Tensor:
        n_before = key.shape[2] - query.shape[2]
        n_history = max(0, self.history_len - n_before)  # queries that belong to the history
        if n_history and (n_before or n_history >= query.shape[2]):
            return self.attend_by_definition(query, key, value, dropout_p)
        latents = causal_attention(query[:, :, n_history:], key, value, dropout_p)  # (B, H, L, D)
        if n_history == 0:
            return latents
        query, key, value = query[:, :, :n_history], key[:, :, :n_history], value[:, :, :n_history]
        history = unmasked_segment_attention(query, key, value, self.segment_len or n_history, dropout_p)
        return torch.cat((history, latents), dim=2)  # (B, H, N, D)


def drop_history(key: Tensor, value: Tensor, n_history: int, share: float) -> tuple[Tensor, Tensor]:
    """Drop a fraction `share` of the first `n_history` of N positions, drawn independently for each sample.

    This is Perceiver AR's cross-attend (prefix) dropout, arXiv 2202.07765. Keys are already rotated, so the remaining
    ones keep their positions. Their indices change, so only `CausalAttention` can be used with it. `key` and `value`
    are (B, H, N, D); the results are (B, H, N - round(share * n_history), D).
    """
    batch, n = key.shape[0], key.shape[2]
    n_kept = n_history - round(share * n_history)
    kept = torch.rand(batch, n_history, device=key.device).topk(n_kept, dim=1).indices.sort(dim=1).values
    latents = torch.arange(n_history, n, device=key.device).expand(batch, -1)
    positions = torch.cat((kept, latents), dim=1)[:, None, :, None].expand(-1, key.shape[1], -1, key.shape[3])
    return key.gather(2, positions), value.gather(2, positions)  # (B, H, n_kept + N - n_history, D)


@lru_cache(maxsize=256)
def _pair_count(pattern: AttentionPattern, n_heads: int, n_queries: int, n_keys: int) -> float:
    blocks = pattern.mask_blocks(n_heads, n_queries, n_keys, torch.device("cpu"))
    return sum(mask.sum().item() / len(mask) for _, mask in blocks)


@lru_cache(maxsize=64)
def _first_visible(pattern: AttentionPattern, n_heads: int, n: int) -> Tensor:
    blocks = [first + _first_true(mask) for first, mask in pattern.mask_blocks(n_heads, n, n, torch.device("cpu"))]
    found = torch.cat(blocks, dim=1)  # (1 or H, n)
    return torch.minimum(found, torch.arange(n))


@lru_cache(maxsize=64)
def lag_table(pattern: AttentionPattern, n_heads: int) -> tuple[int, ...]:
    """For each position of a unit far from the start of the window, the first position that it sees in any head.

    Both positions are relative to the start of the unit, so the table is valid for every such unit. The pattern must
    have a reach.
    """
    assert pattern.unit is not None
    assert pattern.reach is not None
    start = -(-pattern.reach // pattern.unit) * pattern.unit
    mask = pattern._mask(n_heads, start, start + pattern.unit, 0, start + pattern.unit, torch.device("cpu"))
    first = _first_true(mask).amin(dim=0) - start  # (unit,)
    return tuple(torch.minimum(first, torch.arange(pattern.unit)).tolist())


def _first_true(mask: Tensor) -> Tensor:
    """The first key that each query sees, (..., Q, N) -> (..., Q); N if it sees no key."""
    return torch.where(mask.any(dim=-1), mask.to(torch.uint8).argmax(dim=-1), mask.shape[-1])
