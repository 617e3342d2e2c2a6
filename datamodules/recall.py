"""Multi-query associative recall (Arora et al., Zoology, arXiv 2312.04927)."""

from typing import Any, Literal

import numpy as np

from datamodules.synthetic import Example, SyntheticData
from llp.errors import require


class AssociativeRecall(SyntheticData):
    """A window begins with K pairs of a key and its value; later each key occurs once more, and its value is the label.

    With V tokens, keys are drawn from 1 .. V/2 - 1 and values from V/2 .. V - 1, without repetition. The pairs
    `k1 v1 k2 v2 ...` take the first 2K positions. The queries are the same keys, at even positions in the rest of the
    window, drawn uniformly without repetition. (Zoology draws most of them near the pairs, which says little about
    distance.) The label at a query is the key's value; the value itself does not follow in the window.

    All other positions are filler. It contains none of the window's keys, so that each key has exactly one value. (In
    Zoology, random filler may repeat a key in front of another token.)

    The distance of a label is that between the query and its key, which is an even number, at least 2.

    Args:
        vocab_size: V, the number of tokens.
        n_pairs: K, the number of pairs. Pairs and queries must fit into the window: 4K <= `window_len`.
        filler: `zero` for the token 0, as in Zoology's figure. `random` for random tokens other than the window's keys,
            with which the task takes much longer to learn.
        kwargs: Arguments of `SyntheticData`.

    Raises:
        SettingError: If a value can't be used.
    """

    name = "associative_recall"

    def __init__(
        self, vocab_size: int = 512, n_pairs: int = 8, filler: Literal["zero", "random"] = "zero", **kwargs: Any
    ) -> None:
        super().__init__(vocab_size, **kwargs)
        self.n_pairs, self.filler = n_pairs, filler
        most = min(self.window_len // 4, vocab_size // 2 - 1)
        remedy = f"window_len / 4 = {self.window_len // 4} and vocab_size / 2 - 1 = {vocab_size // 2 - 1} are the most"
        require(1 <= n_pairs <= most, "data.init_args.n_pairs", n_pairs, f"set it to 1 or more; {remedy}")
        label_len = self.window_len if self.label_len is None else self.label_len
        start = max(2 * n_pairs, self.window_len - label_len)
        self.query_positions = np.arange(start + start % 2, self.window_len, 2)
        remedy = f"n_pairs = {n_pairs} queries are at every second position; set it to {2 * n_pairs} or more"
        require(len(self.query_positions) >= n_pairs, "data.init_args.label_len", label_len, remedy)
        self.labels_per_window, self.first_position = n_pairs, start + start % 2
        self.n_answers = vocab_size - vocab_size // 2
        self.n_candidates = self.n_answers - (n_pairs - 1)  # values don't repeat

    def draw(self, rng: np.random.Generator) -> Example:
        first_value = self.vocab_size // 2
        keys = 1 + rng.choice(first_value - 1, self.n_pairs, replace=False)
        values = first_value + rng.choice(self.n_answers, self.n_pairs, replace=False)
        positions = rng.choice(self.query_positions, self.n_pairs, replace=False)  # in the order of the keys
        tokens = np.zeros(self.window_len, np.int64)
        if self.filler == "random":
            tokens[:] = rng.choice(np.delete(np.arange(self.vocab_size), keys), self.window_len)
        sources = 1 + 2 * np.arange(self.n_pairs)
        tokens[sources - 1], tokens[sources], tokens[positions] = keys, values, keys
        return Example(tokens, positions, sources)
