"""Perceiver AR's enhancement V1, double attention (arXiv 2412.06106)."""

from functools import partial

from llp.architectures.latents import LatentLanguageModel
from llp.decoder.patterns import LayerPattern, history_attention, history_count


class DoubleAttention(LatentLanguageModel):
    """In every layer the latents attend to everything, causally, and the history attends to itself, without a mask.

    Both are passed on to the next layer. Nothing reads the last layer's history: there only the latents are computed.
    Its arguments are those of `LatentLanguageModel`.
    """

    def layer_pattern(self, layer: int) -> LayerPattern:
        attend = partial(history_attention, latent_len=self.latent_len)
        count = partial(history_count, latent_len=self.latent_len)
        n_out = self.latent_len if layer == self.n_layers - 1 else None
        return LayerPattern(attend, n_out, pair_count=count, latent_len=self.latent_len)
