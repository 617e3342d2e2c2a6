"""Perceiver AR's enhancement V2, split attention (arXiv 2412.06106)."""

from typing import Any

from llp.architectures.latents import LatentLanguageModel
from llp.decoder.patterns import HistoryAttention, Layer
from llp.errors import require


class SplitAttention(LatentLanguageModel):
    """Like `DoubleAttention`, but the history is cut into segments, each of which attends to itself without a mask.

    Args:
        vocab_size: Number of tokens. On the command line it comes from the data.
        latent_len: l, the number of latents, which are the positions with a loss.
        segment_len: m, the length of the history's segments. The last one may be shorter.
        kwargs: Arguments of `LanguageModel`.

    Raises:
        SettingError: If a value can't be used.
    """

    def __init__(
        self, vocab_size: int, latent_len: int = 1024, segment_len: int = 256, **kwargs: Any
    ) -> None:  # pragma: no mutate block
        super().__init__(vocab_size, latent_len, **kwargs)
        require(segment_len >= 1, "segment_len", segment_len, "set it to 1 or more")
        self.segment_len = segment_len

    def layers(self) -> list[Layer]:
        return self.with_latents_last(HistoryAttention(self.latent_len, self.segment_len))
