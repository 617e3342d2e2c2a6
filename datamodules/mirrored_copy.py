"""The mirrored copy of Perceiver AR (Hawthorne et al., arXiv 2202.07765)."""

from typing import Any

import numpy as np

from datamodules.synthetic import Example, SyntheticData
from llp.errors import require

_START, _END, _FIRST_SYMBOL = 0, 1, 2


class MirroredCopy(SyntheticData):
    """A start token, h symbols, the same symbols in reverse, and an end token; the second half are the labels.

    Copied symbol j, counted from 0, is at a distance of 2j + 1 from its source. So each odd distance occurs once per
    window.

    The h symbols are drawn without repetition from at least 2h. A copied symbol has therefore occurred exactly once
    before, and the symbol that preceded it there is the next label. So the task can be solved by content, without
    counting positions, which rotary attention cannot do. Labels cannot be inferred by elimination: even when all other
    symbols are known, at least h + 1 candidates remain.

    Args:
        vocab_size: Number of tokens: start, end, and at least 2h symbols.
        kwargs: Arguments of `SyntheticData`; `window_len` is 2h + 2. With `label_len`, only the labels in the last
            `label_len` positions count, which have the largest distances.

    Raises:
        SettingError: If a value can't be used.
    """

    name = "mirrored_copy"

    def __init__(self, vocab_size: int = 256, **kwargs: Any) -> None:
        super().__init__(vocab_size, **kwargs)
        n, label_len = self.window_len, self.label_len
        is_even = n >= 4 and n % 2 == 0
        remedy = "it holds the symbols, their copy and two other tokens; set it to an even number, 4 or more"
        require(is_even, "data.init_args.window_len", n, remedy)
        self.n_symbols = n // 2 - 1
        remedy = f"window_len = {n} needs at least {2 * self.n_symbols} different symbols; set it to {n} or more"
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
