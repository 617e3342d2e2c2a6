"""Perceiver AR's enhancement V3, compressed history (arXiv 2412.06106)."""

from typing import Any

from llp.architectures.latents import LatentLanguageModel
from llp.decoder.geometry import Compression
from llp.decoder.patterns import HistoryAttention, Layer
from llp.errors import require


class CompressedAttention(LatentLanguageModel):
    """Like `DoubleAttention`, but after layer 0's attention a linear map compresses the history from h to c positions.

    The map acts along the positions and is shared by all features. It has no bias, because a bias would be constant
    over the features, and every later norm would remove it. For a history shorter than h, only the last columns of the
    map are used. There must be at least two layers.

    Args:
        vocab_size: Number of tokens. On the command line it comes from the data.
        latent_len: l, the number of latents, which are the positions with a loss.
        history_len: h, the length of the longest history. Inputs longer than h + l are rejected.
        compressed_len: c, the length of the compressed history, less than h.
        kwargs: Arguments of `LanguageModel`.

    Raises:
        SettingError: If a value can't be used.
    """

    def __init__(
        self,
        vocab_size: int,
        latent_len: int = 1024,
        history_len: int = 1024,
        compressed_len: int = 512,
        **kwargs: Any,
    ) -> None:  # pragma: no mutate block
        super().__init__(vocab_size, latent_len, **kwargs)
        require(self.n_layers >= 2, "n_layers", self.n_layers, "set it to 2 or more; the first layer compresses")
        remedy = f"set it to 1 or more and below history_len = {history_len}"
        require(1 <= compressed_len < history_len, "compressed_len", compressed_len, remedy)
        self.history_len, self.compressed_len = history_len, compressed_len

    def layers(self) -> list[Layer]:
        return self.with_latents_last(HistoryAttention(self.latent_len))

    def compression(self) -> Compression:
        return Compression(self.history_len, self.compressed_len, self.latent_len)
