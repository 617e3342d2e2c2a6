"""LLP, the Long LoRA Perceiver (arXiv 2412.06106; called ECP in its second version)."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from llp.decoder.patterns import LayerPattern, segment_pair_attention, segment_pair_count
from llp.errors import require
from llp.language_model import LanguageModel


class LLP(LanguageModel):
    """Each segment attends to itself causally and to the whole segment before it; all positions have a loss.

    A layer costs O(n m) for n positions in segments of m. Through L layers a position reads back to the start of the
    segment that lies L segments before its own.

    Args:
        vocab_size: Number of tokens. On the command line it comes from the data.
        segment_len: m, the length of a segment. Sequences of any length are accepted, not only multiples of it.
        kwargs: The arguments of `LanguageModel`.

    Raises:
        SettingError: If a value can't be used.
    """

    def __init__(self, vocab_size: int, segment_len: int = 256, **kwargs: Any) -> None:  # pragma: no mutate block
        super().__init__(vocab_size, **kwargs)
        require(segment_len >= 1, "segment_len", segment_len, "set it to 1 or more")
        self.segment_len = segment_len

    def layer_pattern(self, layer: int) -> LayerPattern:
        attend = partial(segment_pair_attention, segment_len=self.segment_len)
        return LayerPattern(attend, pair_count=partial(segment_pair_count, segment_len=self.segment_len))

    def scoring_window(
        self, train_window_len: int, window_len: int | None = None, stride: int | None = None
    ) -> tuple[int, int]:
        """Windows that contain the whole reach, so that the scores are exactly those of one pass over the text.

        The reach is `n_layers * segment_len` tokens; by default the stride is the reach and the window twice as long.
        With `share_key_value`, values are rotated too; the scores then depend on where a window begins, which is part
        of the protocol.

        Raises:
            SettingError: If `segment_len` exceeds the training window, or length and stride are not multiples of it,
                or the window is shorter than reach and stride together.
        """
        segment_len = self.segment_len
        require(
            segment_len <= train_window_len, "segment_len", segment_len, f"window_len = {train_window_len} is shorter"
        )
        reach = self.n_layers * segment_len
        if stride is None:
            stride = reach if window_len is None else max(segment_len, window_len - reach)
        self._require_aligned("scoring_stride", stride)
        if window_len is None:
            window_len = reach + stride
        self._require_aligned("scoring_window_len", window_len)
        require(
            window_len >= reach + stride,
            "scoring_window_len",
            window_len,
            f"set it to {reach + stride} or more: n_layers * segment_len = {reach} plus scoring_stride = {stride}",
        )
        return window_len, stride

    def pattern_edges(self, n: int) -> list[int]:
        return list(range(self.segment_len, n, self.segment_len))

    def context_lens(self, n: int) -> Tensor:
        positions = torch.arange(n)
        segments = positions // self.segment_len
        return positions + 1 - (segments - self.n_layers).clamp(min=0) * self.segment_len

    def _require_aligned(self, setting: str, value: int) -> None:
        aligned = value >= 1 and value % self.segment_len == 0
        require(aligned, setting, value, f"set it to a multiple of segment_len = {self.segment_len}")
