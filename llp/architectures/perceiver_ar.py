"""Perceiver AR (Hawthorne et al., arXiv 2202.07765)."""

from typing import Any

from llp.architectures.latents import LatentLanguageModel
from llp.decoder.patterns import CausalAttention, Layer
from llp.errors import require


class PerceiverAR(LatentLanguageModel):
    """In layer 0, the latents attend to the whole input causally; later layers only contain the latents.

    Args:
        vocab_size: Number of tokens. On the command line it comes from the data.
        latent_len: l, the number of latents, which are the positions with a loss.
        history_dropout: Fraction of the history's positions that layer 0 drops in training, drawn for each sample.
        kwargs: Arguments of `LanguageModel`.

    Raises:
        SettingError: If a value can't be used.
    """

    changeable_settings = LatentLanguageModel.changeable_settings | {"history_dropout"}

    def __init__(
        self, vocab_size: int, latent_len: int = 1024, history_dropout: float = 0.0, **kwargs: Any
    ) -> None:  # pragma: no mutate block
        super().__init__(vocab_size, latent_len, **kwargs)
        require(0 <= history_dropout < 1, "history_dropout", history_dropout, "set it to 0 or more and less than 1")
        self.history_dropout = history_dropout

    def layers(self) -> list[Layer]:
        first = Layer(CausalAttention(), self.latent_len, self.history_dropout)
        return [first] + [Layer(CausalAttention(), self.latent_len)] * (self.n_layers - 1)
