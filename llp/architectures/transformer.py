"""The dense decoder-only Transformer, the baseline."""

from llp.decoder.patterns import LayerPattern, causal_attention
from llp.language_model import LanguageModel


class Transformer(LanguageModel):
    """Causal attention over all positions in every layer; all positions have a loss.

    Its arguments are those of `LanguageModel`.
    """

    def layer_pattern(self, layer: int) -> LayerPattern:
        return LayerPattern(causal_attention)
