"""Perceiver AR's enhancement V2, split attention (arXiv 2412.06106)."""

from functools import partial
from typing import Any

from llp.architectures.latents import LatentLanguageModel
from llp.decoder.patterns import LayerPattern, history_attention, history_count
from llp.errors import require


class SplitAttention(LatentLanguageModel):
    """As `DoubleAttention`, but the history is cut into segments, each of which attends only to itself, without a mask.

    Args:
        vocab_size: Number of tokens. On the command line it comes from the data.
        latent_len: l, the number of latents, which are the positions with a loss.
        segment_len: m, the length of the history's segments; the last one may be shorter.
        kwargs: The arguments of `LanguageModel`.

    Raises:
        SettingError: If a value can't be used.
    """

    def __init__(
        self, vocab_size: int, latent_len: int = 1024, segment_len: int = 256, **kwargs: Any
    ) -> None:  # pragma: no mutate block
        super().__init__(vocab_size, latent_len, **kwargs)
        require(segment_len >= 1, "segment_len", segment_len, "set it to 1 or more")
        self.segment_len = segment_len

    def layer_pattern(self, layer: int) -> LayerPattern:
        attend = partial(history_attention, latent_len=self.latent_len, segment_len=self.segment_len)
        count = partial(history_count, latent_len=self.latent_len, segment_len=self.segment_len)
        n_out = self.latent_len if layer == self.n_layers - 1 else None
        return LayerPattern(attend, n_out, pair_count=count, latent_len=self.latent_len)
