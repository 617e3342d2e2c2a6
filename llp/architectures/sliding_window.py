"""A causal sliding window (Longformer, arXiv 2004.05150), the usual way to make attention linear."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from llp.architectures.reach import windows_with_reach
from llp.decoder.patterns import LayerPattern, sliding_window_attention, sliding_window_count, window_kept
from llp.errors import require
from llp.language_model import LanguageModel


class SlidingWindow(LanguageModel):
    """Each position attends to itself and to the `window` - 1 positions before it; all positions have a loss.

    A layer costs O(n w) for n positions and a window of w. Through L layers a position reads back L (w - 1) positions.

    Args:
        vocab_size: Number of tokens. On the command line it comes from the data.
        window: w, how many positions each attends to, itself included.
        kwargs: The arguments of `LanguageModel`.

    Raises:
        SettingError: If a value can't be used.
    """

    def __init__(self, vocab_size: int, window: int = 256, **kwargs: Any) -> None:  # pragma: no mutate block
        super().__init__(vocab_size, **kwargs)
        require(window >= 1, "window", window, "set it to 1 or more")
        self.window = window

    def layer_pattern(self, layer: int) -> LayerPattern:
        attend = partial(sliding_window_attention, window=self.window)
        count, kept = (partial(function, window=self.window) for function in (sliding_window_count, window_kept))
        return LayerPattern(attend, pair_count=count, first_kept=kept)

    def scoring_window(
        self, train_window_len: int, window_len: int | None = None, stride: int | None = None
    ) -> tuple[int, int]:
        """Windows that hold the whole reach, so that the scores are exactly those of one pass over the text.

        The reach is `n_layers * (window - 1)` tokens; by default the stride is the reach and the window twice as long.
        A window may be shorter: then, as with `share_key_value`, where values are rotated too, the scores depend on
        where a window begins, which is part of the protocol.

        Raises:
            SettingError: If `window` exceeds the training window, or the stride exceeds the scoring window.
        """
        require(self.window <= train_window_len, "window", self.window, f"window_len = {train_window_len} is shorter")
        window_len, stride = windows_with_reach(self.reach, 1, window_len, stride)
        return super().scoring_window(train_window_len, window_len, stride)

    @property
    def reach(self) -> int:
        return self.n_layers * (self.window - 1)

    def pattern_edges(self, n: int) -> list[int]:
        return [self.window] if self.window < n else []

    def context_lens(self, n: int) -> Tensor:
        return torch.arange(1, n + 1).clamp(max=1 + self.n_layers * (self.window - 1))
