"""Segments, shifted for half of the heads: the S2-Attn of LongLoRA (arXiv 2309.12307), without its leak."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from llp.architectures.reach import require_aligned, windows_with_reach
from llp.decoder.patterns import LayerPattern, segments_kept, shifted_segment_attention, shifted_segment_count
from llp.errors import require
from llp.language_model import LanguageModel


class ShiftedSegments(LanguageModel):
    """Half of the heads attend within segments, half within segments shifted by half a length; all are causal.

    The first of the shifted segments is half as long, and none joins the end of the text to its beginning. All
    positions have a loss. A layer costs O(n m) for n positions in segments of m. Through L layers a position reads back
    to the start of the half segment that lies L half segments before its own.

    Args:
        vocab_size: Number of tokens. On the command line it comes from the data.
        segment_len: m, the length of a segment, an even number. Sequences of any length are accepted.
        kwargs: The arguments of `LanguageModel`; `n_heads` must be even.

    Raises:
        SettingError: If a value can't be used.
    """

    def __init__(self, vocab_size: int, segment_len: int = 256, **kwargs: Any) -> None:  # pragma: no mutate block
        super().__init__(vocab_size, **kwargs)
        even = segment_len >= 2 and segment_len % 2 == 0
        require(even, "segment_len", segment_len, "set it to an even number; segments are shifted by half of it")
        n_heads = self.settings.n_heads
        require(n_heads % 2 == 0, "n_heads", n_heads, "set it to an even number; half of the heads are shifted")
        self.segment_len = segment_len

    def layer_pattern(self, layer: int) -> LayerPattern:
        attend = partial(shifted_segment_attention, segment_len=self.segment_len)
        count = partial(shifted_segment_count, segment_len=self.segment_len)
        kept = partial(segments_kept, segment_len=self.segment_len, look_back=1)
        return LayerPattern(attend, pair_count=count, first_kept=kept)

    def scoring_window(
        self, train_window_len: int, window_len: int | None = None, stride: int | None = None
    ) -> tuple[int, int]:
        """Windows that hold the whole reach, so that the scores are exactly those of one pass over the text.

        The reach is `n_layers` half segments, rounded up to whole ones, before a segment; by default the stride is the
        reach and the window twice as long. A window may be shorter: then, as with `share_key_value`, where values are
        rotated too, the scores depend on where a window begins, which is part of the protocol.

        Raises:
            SettingError: If `segment_len` exceeds the training window, or length and stride are not multiples of it,
                or the stride exceeds the window.
        """
        segment_len = self.segment_len
        require(
            segment_len <= train_window_len, "segment_len", segment_len, f"window_len = {train_window_len} is shorter"
        )
        require_aligned(window_len, stride, segment_len)
        window_len, stride = windows_with_reach(self.reach, segment_len, window_len, stride)
        return super().scoring_window(train_window_len, window_len, stride)

    @property
    def window_unit(self) -> int:
        return self.segment_len

    @property
    def reach(self) -> int:
        return (self.n_layers + 1) // 2 * self.segment_len

    def pattern_edges(self, n: int) -> list[int]:
        return list(range(self.segment_len // 2, n, self.segment_len // 2))

    def context_lens(self, n: int) -> Tensor:
        positions, half = torch.arange(n), self.segment_len // 2
        return positions + 1 - (positions // half - self.n_layers).clamp(min=0) * half
