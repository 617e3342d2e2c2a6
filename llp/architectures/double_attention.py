"""Perceiver AR's enhancement V1, double attention (arXiv 2412.06106)."""

from llp.architectures.latents import LatentLanguageModel
from llp.decoder.patterns import HistoryAttention, Layer


class DoubleAttention(LatentLanguageModel):
    """In every layer, the latents attend to all positions causally, and the history attends to itself without a mask.

    Both are passed on to the next layer. The last layer only computes the latents, because no layer reads its history.
    The arguments are those of `LatentLanguageModel`.
    """

    def layers(self) -> list[Layer]:
        return self.with_latents_last(HistoryAttention(self.latent_len))
