"""Perceiver AR's enhancement V3, compressed history (arXiv 2412.06106)."""

from functools import partial
from typing import Any

from llp.architectures.latents import LatentLanguageModel
from llp.decoder.decoder import Compress
from llp.decoder.patterns import LayerPattern, history_attention, history_count
from llp.errors import require


class CompressedAttention(LatentLanguageModel):
    """As `DoubleAttention`, but after layer 0's attention a linear map compresses the history from h to c positions.

    The map acts along the positions and is shared by all features. It has no bias, which would be a constant that every
    later norm removes. A history shorter than h uses the map's last columns. There must be at least two layers.

    Args:
        vocab_size: Number of tokens. On the command line it comes from the data.
        latent_len: l, the number of latents, which are the positions with a loss.
        history_len: h, the longest history; inputs longer than h + l are rejected.
        compressed_len: c, the length of the compressed history; less than h.
        kwargs: The arguments of `LanguageModel`.

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

    def layer_pattern(self, layer: int) -> LayerPattern:
        attend = partial(history_attention, latent_len=self.latent_len)
        count = partial(history_count, latent_len=self.latent_len)
        n_out = self.latent_len if layer == self.n_layers - 1 else None
        return LayerPattern(attend, n_out, pair_count=count, latent_len=self.latent_len)

    def compression(self) -> Compress:
        std = self.history_len**-0.5 if self.settings.initialization == "normal" else None
        return Compress(self.history_len, self.compressed_len, self.latent_len, std)

    def scoring_window(
        self, train_window_len: int, window_len: int | None = None, stride: int | None = None
    ) -> tuple[int, int]:
        self._require_fits("window_len", train_window_len)
        window_len, stride = super().scoring_window(train_window_len, window_len, stride)
        self._require_fits("scoring_window_len", window_len)
        return window_len, stride

    def _require_fits(self, setting: str, length: int) -> None:
        longest = self.history_len + self.latent_len
        require(length <= longest, setting, length, f"history_len + latent_len = {longest} is the longest input")
