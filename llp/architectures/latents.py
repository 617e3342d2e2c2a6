"""The base class of the architectures with latents: only the last positions are scored, the others are the history."""

from typing import Any

from llp.decoder.patterns import AttentionPattern, Layer
from llp.errors import require
from llp.language_model import LanguageModel


class LatentLanguageModel(LanguageModel):
    """A language model in which only the last `latent_len` positions, the latents, have a loss.

    The positions before the latents are the history. An input of at most `latent_len` positions has no history.

    Args:
        vocab_size: Number of tokens. On the command line it comes from the data.
        latent_len: l, the number of latents.
        kwargs: Arguments of `LanguageModel`.

    Raises:
        SettingError: If a value can't be used.
    """

    def __init__(self, vocab_size: int, latent_len: int = 1024, **kwargs: Any) -> None:  # pragma: no mutate block
        super().__init__(vocab_size, **kwargs)
        require(latent_len >= 1, "latent_len", latent_len, "set it to 1 or more")
        self.latent_len = latent_len

    def with_latents_last(self, pattern: AttentionPattern) -> list[Layer]:
        """Layers with one pattern. The last one computes only the latents, the others also the history."""
        return [Layer(pattern)] * (self.n_layers - 1) + [Layer(pattern, n_out=self.latent_len)]
