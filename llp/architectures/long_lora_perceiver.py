"""LLP, the Long LoRA Perceiver (arXiv 2412.06106; called ECP in its second version)."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from llp.architectures.reach import require_aligned, windows_with_reach
from llp.decoder.patterns import (
    LayerPattern,
    causal_attention,
    segment_pair_attention,
    segment_pair_count,
    segments_kept,
)
from llp.errors import require
from llp.language_model import LanguageModel


class LLP(LanguageModel):
    """Each segment attends to itself causally and to the whole segment before it; all positions have a loss.

    A layer costs O(n m) for n positions in segments of m. Through L layers a position reads back to the start of the
    segment that lies L segments before its own; to the start of the window if some layers are dense.

    Args:
        vocab_size: Number of tokens. On the command line it comes from the data.
        segment_len: m, the length of a segment. Sequences of any length are accepted, not only multiples of it.
        look_back: How many whole segments before its own each attends to; 0: segments that know nothing of each other.
        dense_every: Let every k-th layer, counted so that the last layer is one, attend to all earlier positions; null:
            no layer does. The reach is then the whole window.
        kwargs: The arguments of `LanguageModel`.

    Raises:
        SettingError: If a value can't be used.
    """

    def __init__(
        self,
        vocab_size: int,
        segment_len: int = 256,
        look_back: int = 1,
        dense_every: int | None = None,
        **kwargs: Any,
    ) -> None:  # pragma: no mutate block
        super().__init__(vocab_size, **kwargs)
        require(segment_len >= 1, "segment_len", segment_len, "set it to 1 or more")
        require(look_back >= 0, "look_back", look_back, "set it to 0 or more")
        remedy = "set it to 1 or more, or to null for no dense layer"
        require(dense_every is None or dense_every >= 1, "dense_every", dense_every, remedy)
        self.segment_len, self.look_back, self.dense_every = segment_len, look_back, dense_every

    def layer_pattern(self, layer: int) -> LayerPattern:
        if self.dense_every is not None and (self.n_layers - 1 - layer) % self.dense_every == 0:
            return LayerPattern(causal_attention)
        attend = partial(segment_pair_attention, segment_len=self.segment_len, look_back=self.look_back)
        count = partial(segment_pair_count, segment_len=self.segment_len, look_back=self.look_back)
        kept = partial(segments_kept, segment_len=self.segment_len, look_back=self.look_back)
        return LayerPattern(attend, pair_count=count, first_kept=kept)

    def scoring_window(
        self, train_window_len: int, window_len: int | None = None, stride: int | None = None
    ) -> tuple[int, int]:
        """Windows that hold the whole reach, so that the scores are exactly those of one pass over the text.

        The reach is `n_layers * look_back * segment_len` tokens before a segment; by default the stride is the reach
        and the window twice as long. A window may be shorter: then, as with `share_key_value`, where values are rotated
        too, the scores depend on where a window begins, which is part of the protocol. With dense layers the reach has
        no end, and windows are those of any model: as long as in training.

        Raises:
            SettingError: If `segment_len` exceeds the training window, or length and stride are not multiples of it
                (which dense layers don't ask for), or the stride exceeds the window.
        """
        segment_len = self.segment_len
        require(
            segment_len <= train_window_len, "segment_len", segment_len, f"window_len = {train_window_len} is shorter"
        )
        if self.reach is not None:
            require_aligned(window_len, stride, segment_len)
            window_len, stride = windows_with_reach(self.reach, segment_len, window_len, stride)
        return super().scoring_window(train_window_len, window_len, stride)

    @property
    def window_unit(self) -> int:
        return self.segment_len

    @property
    def reach(self) -> int | None:
        return None if self.dense_every is not None else self.n_layers * self.look_back * self.segment_len

    def pattern_edges(self, n: int) -> list[int]:
        return list(range(self.segment_len, n, self.segment_len))

    def context_lens(self, n: int) -> Tensor:
        if self.dense_every is not None:
            return super().context_lens(n)
        positions = torch.arange(n)
        segments = positions // self.segment_len
        return positions + 1 - (segments - self.n_layers * self.look_back).clamp(min=0) * self.segment_len
