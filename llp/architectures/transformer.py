"""The dense decoder-only Transformer, the baseline."""

from llp.decoder.patterns import CausalAttention, Layer
from llp.language_model import LanguageModel


class Transformer(LanguageModel):
    """Causal attention over all positions in every layer; all positions have a loss.

    The arguments are those of `LanguageModel`.
    """

    def layers(self) -> list[Layer]:
        return [Layer(CausalAttention())] * self.n_layers
