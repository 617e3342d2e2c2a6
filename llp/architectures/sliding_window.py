"""A causal sliding window (Longformer, arXiv 2004.05150), the usual way to make attention linear."""

from typing import Any

from llp.decoder.patterns import Layer, SlidingWindowAttention
from llp.errors import require
from llp.language_model import LanguageModel


class SlidingWindow(LanguageModel):
    """Each position attends to itself and to the `window` - 1 positions before it; all positions have a loss.

    A layer costs O(n w) for n positions and a window of w. Over L layers, a position reads back L (w - 1) positions.

    Args:
        vocab_size: Number of tokens. On the command line it comes from the data.
        window: w, the number of positions that each position attends to, including itself.
        kwargs: Arguments of `LanguageModel`.

    Raises:
        SettingError: If a value can't be used.
    """

    def __init__(self, vocab_size: int, window: int = 256, **kwargs: Any) -> None:  # pragma: no mutate block
        super().__init__(vocab_size, **kwargs)
        require(window >= 1, "window", window, "set it to 1 or more")
        self.window = window

    def layers(self) -> list[Layer]:
        return [Layer(SlidingWindowAttention(self.window))] * self.n_layers
