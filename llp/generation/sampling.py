"""How the next token is drawn."""

import numpy as np
import torch
from torch import Tensor

from llp.errors import require


class Sampling:
    """Draws the next token from its logits.

    Args:
        temperature: Divides the logits; 0 always picks the most likely token.
        top_k: Draw only from the `top_k` most likely tokens; None for all tokens.
        top_p: Draw only from the most likely tokens that together have at least this probability.
        seed: Seed of the random draws.

    Raises:
        SettingError: If a value can't be used.
    """

    def __init__(self, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0, seed: int = 0) -> None:
        require(temperature >= 0, "temperature", temperature, "set it to 0 or more")
        require(top_k is None or top_k >= 1, "top_k", top_k, "set it to 1 or more, or leave it out")
        require(0 < top_p <= 1, "top_p", top_p, "set it above 0, and to 1 or less")
        require(-(2**63) <= seed < 2**63, "seed", seed, "set it to a 64-bit integer")
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self.generator = torch.Generator().manual_seed(seed)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits (vocab_size,) -> the probabilities (vocab_size,) from which the next token is drawn."""
        scaled = logits / self.temperature
        overflows = bool(logits.isfinite().all()) and not bool(scaled.isfinite().all())
        if self.temperature == 0 or overflows:  # the temperature is close to 0
            return torch.nn.functional.one_hot(logits.argmax(), len(logits)).to(logits.dtype)
        shares = scaled.softmax(-1)
        if not shares.sum().isfinite():  # a diverged model has no most likely token
            return torch.full_like(shares, 1 / len(shares))
        kept = shares * self._kept(shares)
        return kept / kept.sum()

    def _kept(self, shares: Tensor) -> Tensor:
        """Which tokens can be drawn, given the probabilities (vocab_size,) of all: (vocab_size,) booleans."""
        if self.top_k is None and self.top_p == 1:
            return torch.ones_like(shares, dtype=torch.bool)
        # The last kept token and the less likely ones have a total probability of more than 1 - top_p. So its own is at
        # least (1 - top_p) / vocab_size, and tokens below that need not be sorted. NumPy sorts without indices, in a
        # third of torch's time.
        likely = shares[shares >= min((1 - self.top_p) / len(shares), float(shares.max()))]
        ordered = torch.from_numpy(np.sort(likely.numpy())).flip(0)
        before = ordered.cumsum(0, dtype=torch.float64) - ordered  # of the more likely tokens
        n = min(int((before < self.top_p).sum()), self.top_k or len(shares))
        least = ordered[n - 1]
        kept = shares > least
        kept[(shares == least).nonzero()[: n - int(kept.sum())]] = True  # the first of equally likely tokens
        return kept

    def draw(self, logits: Tensor) -> int:
        """Draw a token from logits (vocab_size,). This is done on the CPU, so that all devices and ranks draw the same.

        Each draw takes one random number, so that later draws don't depend on rounding.
        """
        up_to = self.probabilities(logits.float().cpu()).double().cumsum(-1)
        drawn = torch.rand((), dtype=torch.float64, generator=self.generator) * up_to[-1]
        return int(torch.searchsorted(up_to, drawn, right=True))
