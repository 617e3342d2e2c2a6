"""Patterns that a user might bring: nothing but `sees`, and `unit` and `reach` where they have them."""

from dataclasses import dataclass

import torch

from llp import AttentionPattern, LanguageModel, Layer


@dataclass(frozen=True)
class WindowWithSinks(AttentionPattern):
    """The last `window` positions and the first `n_sinks`: not shift-invariant."""

    window: int = 4
    n_sinks: int = 2

    def sees(self, head, query, key):
        return (query - key < self.window) | (key < self.n_sinks)


@dataclass(frozen=True)
class Dilated(AttentionPattern):
    """Every `step`-th of the last positions: the first one that is seen goes back and forth."""

    step: int = 3
    count: int = 2

    def sees(self, head, query, key):
        return (query - key <= self.step * self.count) & ((query - key) % self.step == 0)

    @property
    def unit(self):
        return 1

    @property
    def reach(self):
        return self.step * self.count


@dataclass(frozen=True)
class Landmarks(AttentionPattern):
    """The own segment, and the last position of the segment before; every second head sees itself alone."""

    segment_len: int = 4

    def sees(self, head, query, key):
        m = self.segment_len
        near = (query // m == key // m) | (key == query // m * m - 1)
        return torch.where(head % 2 == 0, near, query == key)

    @property
    def unit(self):
        return self.segment_len

    @property
    def reach(self):
        return 1


@dataclass(frozen=True)
class Blind(AttentionPattern):
    """The first three positions see nothing at all, not even themselves; the others all before themselves."""

    def sees(self, head, query, key):
        return (query >= 3) & (key < query)


OWN_PATTERNS = [WindowWithSinks(), Dilated(), Landmarks(), Blind()]


class OwnModel(LanguageModel):
    """A model of one's own, out of patterns of one's own."""

    def __init__(self, vocab_size: int, kind: str = "WindowWithSinks", **kwargs) -> None:
        super().__init__(vocab_size, **kwargs)
        self.pattern = next(pattern for pattern in OWN_PATTERNS if type(pattern).__name__ == kind)

    def layers(self):
        return [Layer(self.pattern)] * self.n_layers
