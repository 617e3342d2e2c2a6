"""Perceiver AR's enhancement V1, double attention (arXiv 2412.06106)."""

from functools import partial

from llp.architectures.latents import LatentLanguageModel
from llp.decoder.patterns import LayerPattern, history_attention, history_count


class DoubleAttention(LatentLanguageModel):
    """In every layer the latents query everything, causally, and the history queries itself, without a mask.

    Both parts go on to the next layer; in the last one nobody reads the history, and only the latents are computed.
    Its arguments are those of `LatentLanguageModel`.
    """

    def layer_pattern(self, layer: int) -> LayerPattern:
        attend = partial(history_attention, latent_len=self.latent_len)
        count = partial(history_count, latent_len=self.latent_len)
        return LayerPattern(attend, self.latent_len if layer == self.n_layers - 1 else None, pair_count=count)
