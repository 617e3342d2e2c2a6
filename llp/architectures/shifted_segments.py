"""Segments that are shifted in half of the heads: the S2-Attn of LongLoRA (arXiv 2309.12307), without its leak."""

from typing import Any

from llp.decoder.patterns import Layer, ShiftedSegmentAttention
from llp.errors import require
from llp.language_model import LanguageModel


class ShiftedSegments(LanguageModel):
    """Half of the heads attend within segments, and half within segments shifted by half a length; all are causal.

    The first shifted segment is half as long, and no segment wraps around the end of the text. All positions have a
    loss. A layer costs O(n m) for n positions in segments of m. Over L layers, a position reads back to the start of
    the half segment L half segments before its own.

    Args:
        vocab_size: Number of tokens. On the command line it comes from the data.
        segment_len: m, the length of a segment, an even number. Sequences of any length are accepted.
        kwargs: Arguments of `LanguageModel`; `n_heads` must be even.

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

    def layers(self) -> list[Layer]:
        return [Layer(ShiftedSegmentAttention(self.segment_len, self.settings.n_heads))] * self.n_layers
