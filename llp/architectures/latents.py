"""What the architectures with latents share: the last positions are scored, all before them are history."""

from typing import Any, Literal

from llp.errors import require
from llp.language_model import LanguageModel


class LatentLanguageModel(LanguageModel):
    """A language model whose last `latent_len` positions, the latents, have a loss.

    In an input no longer than that, all positions are latents; the positions before the latents are the history.

    Args:
        vocab_size: Number of tokens. On the command line it comes from the data.
        latent_len: l, the number of latents.
        kwargs: The arguments of `LanguageModel`.

    Raises:
        SettingError: If a value can't be used.
    """

    def __init__(self, vocab_size: int, latent_len: int = 1024, **kwargs: Any) -> None:  # pragma: no mutate block
        super().__init__(vocab_size, **kwargs)
        require(latent_len >= 1, "latent_len", latent_len, "set it to 1 or more")
        self.latent_len = latent_len

    def scoring_window(
        self, train_window_len: int, window_len: int | None = None, stride: int | None = None
    ) -> tuple[int, int]:
        """Windows as long as in training, which score their latents: the stride is at most `latent_len`.

        Raises:
            SettingError: If `latent_len` exceeds the training window, or the stride exceeds `latent_len`.
        """
        latent_len = self.latent_len
        remedy = f"window_len = {train_window_len} is shorter; set it to {train_window_len} or less"
        require(latent_len <= train_window_len, "latent_len", latent_len, remedy)
        if stride is None:
            stride = min(latent_len, window_len or train_window_len)
        remedy = f"only the latents are scored; set it to latent_len = {latent_len} or less"
        require(stride <= latent_len, "scoring_stride", stride, remedy)
        return super().scoring_window(train_window_len, window_len, stride)

    def burn_in_len(self, asked: int | Literal["reach"]) -> int:
        """None: the history is what is read before the latents.

        Raises:
            SettingError: If any is asked for.
        """
        remedy = "the history before the latents is read without a loss as it is; set it to 0, and lengthen window_len"
        require(asked == 0, "data.init_args.burn_in", asked, remedy)
        return 0

    def first_latent(self, start: int, stop: int) -> int:
        return max(start, stop - self.latent_len)

    def room_without_window(self, position: int) -> int:
        remedy = f"without a window a text has latent_len = {self.latent_len} positions; give new_memory a window"
        require(position < self.latent_len, "tokens", position + 1, remedy)
        return self.latent_len - position

    def pattern_edges(self, n: int) -> list[int]:
        return [max(0, n - self.latent_len)]
