"""The mirrored copy of Perceiver AR (Hawthorne et al., arXiv 2202.07765)."""

from typing import Any

import numpy as np

from datamodules.synthetic import Example, SyntheticData
from llp.errors import require

_START, _END, _FIRST_SYMBOL = 0, 1, 2


class MirroredCopy(SyntheticData):
    """A start token, h symbols, the same symbols in reverse, and an end token; the second half are the labels.

    Copied symbol j, counted from 0, has a distance of 2j + 1 from its source: each odd distance occurs once a window.

    The symbols are drawn without repetition, from at least twice as many. So a copied symbol has occurred just once
    before, and the symbol before it there is the next label: the task can be solved by content, without counting
    positions, which rotary attention can't do. After all symbols but the source have been read, h + 1 or more are left,
    so that no label can be inferred by elimination.

    Args:
        vocab_size: Number of tokens: start, end, and at least 2h symbols.
        kwargs: The arguments of `SyntheticData`; `window_len` is 2h + 2. With a `label_len`, only the labels among so
            many positions at the end count, those with the greatest distances.

    Raises:
        SettingError: If a value can't be used.
    """

    name = "mirrored_copy"

    def __init__(self, vocab_size: int = 256, **kwargs: Any) -> None:
        super().__init__(vocab_size, **kwargs)
        n, label_len = self.window_len, self.label_len
        is_even = n >= 4 and n % 2 == 0
        require(is_even, "data.init_args.window_len", n, "it holds symbols, their copy and two tokens; make it even")
        self.n_symbols = n // 2 - 1
        remedy = f"window_len = {n} takes symbols from 2 * {self.n_symbols} or more; set it to {n} or more"
        require(vocab_size >= 2 * self.n_symbols + _FIRST_SYMBOL, "data.init_args.vocab_size", vocab_size, remedy)
        start = self.n_symbols if label_len is None else max(self.n_symbols, n - label_len)
        self.positions = np.arange(start, 2 * self.n_symbols)
        remedy = "the last two positions have no label; set it to 3 or more"
        require(len(self.positions) > 0, "data.init_args.label_len", label_len, remedy)
        self.sources = 2 * self.n_symbols - self.positions
        self.labels_per_window, self.first_position = len(self.positions), start
        self.n_answers = vocab_size - _FIRST_SYMBOL
        self.n_candidates = self.n_answers - (self.n_symbols - 1)  # symbols don't repeat

    def draw(self, rng: np.random.Generator) -> Example:
        symbols = _FIRST_SYMBOL + rng.choice(self.n_answers, self.n_symbols, replace=False)
        tokens = np.concatenate(([_START], symbols, symbols[::-1], [_END]))
        return Example(tokens, self.positions, self.sources)
