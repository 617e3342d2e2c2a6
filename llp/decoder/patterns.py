"""Who attends to whom: attention patterns as values.

A pattern is its definition, `sees`: which positions see which, counted from the start of the window. Everything else
follows from it: causality and the declared reach are added by `visible`, and attention, the number of query-key pairs,
what a cache must keep, the masks in plots and the brute force of the tests are computed from `visible`. A pattern may
override `attend` with a faster path, and a count with a formula; the tests hold both equal to `visible`.

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
from llp.errors import require

_BLOCK_LEN = 256  # queries whose mask is held at a time


@dataclass(frozen=True)
class AttentionPattern:
    """Who sees whom in one layer. A subclass defines `sees`, and `unit` and `reach` if it is local."""

    def sees(self, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """Whether a query sees a key, before causality: positions in, booleans out.

        Args:
            head: Numbers of heads, (H, 1, 1).
            query: Positions of queries, (Q, 1), counted from the start of the window.
            key: Positions of keys, (N,). Keys after the query need not be excluded.

        Returns:
            Booleans that broadcast to (H, Q, N). FlexAttention calls this with zero-dimensional tensors.
        """
        raise NotImplementedError

    @property
    def unit(self) -> int | None:
        """The pattern repeats after this many positions: sees(q + unit, k + unit) equals sees(q, k).

        None if it does not repeat: a pattern that keeps the first tokens in sight depends on where the window begins.
        """
        return None

    @property
    def reach(self) -> int | None:
        """How many positions before the start of its unit a query can see, at most; None if there is no bound.

        It needs a `unit`. The mask enforces it, because no finite number of probes could prove it.
        """
        return None

    @property
    def history_len(self) -> int:
        """How many of the first positions see each other without a mask. They never have a loss."""
        return 0

    def in_window(self, n: int) -> Self:
        """The pattern for a window of `n` positions in total, even while the window is still being filled."""
        return self

    def check_window(self, n: int) -> None:
        """Raise a `SettingError` if training windows of `n` positions are too short for the pattern."""

    def visible(self, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        """`sees`, made causal and limited to the declared reach; same arguments. FlexAttention's `mask_mod`."""
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
        """What `attend` computes, straight from `visible`."""
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
        """Which of N keys the last Q of N positions see: (1, Q, N) booleans, or (H, Q, N) if heads differ."""
        return self._mask(n_heads, n_keys - n_queries, n_keys, 0, n_keys, torch.device("cpu"))

    def pair_count(self, n_heads: int, n_queries: int, n_keys: int) -> float:
        """The number of query-key pairs in a head, or the mean over the heads if they differ; for FLOPs."""
        return _pair_count(self, n_heads, n_queries, n_keys)

    def first_visible(self, n_heads: int, n: int) -> Tensor:
        """The first of `n` positions that each of them sees: (1, n) int64, or (H, n) if heads differ.

        A position that sees nothing counts as seeing itself, since the residual stream keeps it.
        """
        return _first_visible(self, n_heads, n)

    def first_kept(self, n_heads: int, n: int) -> int:
        """The first position that queries from position `n` on can see, rounded down to the unit."""
        if self.unit is None or self.reach is None:
            return 0
        start, offset = n // self.unit * self.unit, n % self.unit
        lags = lag_table(self, n_heads)
        first = start + min(*lags[offset:], min(lags) + self.unit)
        return max(0, first // self.unit * self.unit)

    def mask_blocks(
        self, n_heads: int, n_queries: int, n_keys: int, device: torch.device
    ) -> Iterator[tuple[int, Tensor]]:
        """The first key that is needed, and the mask from it on, for each block of queries."""
        for start in range(n_keys - n_queries, n_keys, _BLOCK_LEN):
            stop = min(start + _BLOCK_LEN, n_keys)
            first = 0
            if self.unit is not None and self.reach is not None:
                first = max(0, start // self.unit * self.unit - self.reach)
            last = min(n_keys, max(stop, self.history_len))
            yield first, self._mask(n_heads, start, stop, first, last, device)

    def _mask(self, n_heads: int, start: int, stop: int, first: int, last: int, device: torch.device) -> Tensor:
        """Which of the keys first .. last - 1 the queries start .. stop - 1 see: (1 or H, Q, N)."""
        head = torch.arange(n_heads, device=device).view(-1, 1, 1)
        query = torch.arange(start, stop, device=device).unsqueeze(1)
        seen = self.visible(head, query, torch.arange(first, last, device=device))
        return seen if seen.ndim == 3 else seen.unsqueeze(0)


class Layer(NamedTuple):
    """What an architecture specifies for one layer."""

    pattern: AttentionPattern
    """Who attends to whom."""
    n_out: int | None = None
    """How many positions, counted from the end, query in the layer and leave it; None if all that enter do."""
    history_dropout: float = 0.0
    """The share of the positions before the queries that is dropped from the keys in training."""


@dataclass(frozen=True)
class CausalAttention(AttentionPattern):
    """Every position sees itself and all before it: a Transformer; Perceiver AR, where fewer positions query."""

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
        return torch.zeros(1, n, dtype=torch.int64)  # n x n masks of a long window take seconds


@dataclass(frozen=True)
class SegmentAttention(AttentionPattern):
    """Long LoRA Perceiver: each segment sees itself, causally, and the `look_back` whole segments before it.

    Segments are cut from the first position on, and the last one may be shorter. O(N segment_len).

    Source: arXiv 2412.06106, section on the Long LoRA Perceiver; the segments are those of LongLoRA, arXiv 2309.12307.
    """

    segment_len: int
    look_back: int = 1

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
    """Half of the heads see their segment, causally, and half see segments that are shifted by half a length.

    The first of the shifted segments is half as long; none wraps around the end of the sequence.

    Source: S2-Attn of LongLoRA, arXiv 2309.12307, without the leak of its published form.
    """

    segment_len: int
    n_heads: int

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
    """Every position sees the last `window` positions up to itself: O(N window).

    Source: the sliding window of Longformer, arXiv 2004.05150, causal.
    """

    window: int

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

    The history's own attention has no mask. With `segment_len` the history is cut into segments from its first position
    on, and each sees only itself.

    Source: arXiv 2412.06106, enhancements V1 (double attention) and V2 (split attention).
    """

    latent_len: int
    segment_len: int | None = None
    window_len: int | None = None
    """Positions of the whole window, set by `in_window`: they tell latents from history."""

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
    """Drop a share of the first `n_history` of N positions: equally many in each sample, drawn independently.

    Perceiver AR's cross-attend (prefix) dropout, arXiv 2202.07765. The keys are already rotated, so those that remain
    keep their positions; their indices change, so only `CausalAttention` can be used with it. `key` and `value` are
    (B, H, N, D); the results are (B, H, N - round(share * n_history), D).
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
    """The first position that each position of a unit sees in any head, far from the start of the window.

    Both are counted from the start of the unit, so that the table holds for every unit. The pattern must have a reach.
    """
    assert pattern.unit is not None
    assert pattern.reach is not None
    start = -(-pattern.reach // pattern.unit) * pattern.unit
    mask = pattern._mask(n_heads, start, start + pattern.unit, 0, start + pattern.unit, torch.device("cpu"))
    first = _first_true(mask).amin(dim=0) - start  # (unit,)
    return tuple(torch.minimum(first, torch.arange(pattern.unit)).tolist())


def _first_true(mask: Tensor) -> Tensor:
    """The first key that is seen, (..., Q, N) -> (..., Q); N if none is."""
    return torch.where(mask.any(dim=-1), mask.to(torch.uint8).argmax(dim=-1), mask.shape[-1])
