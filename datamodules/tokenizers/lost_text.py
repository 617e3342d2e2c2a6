"""Whether a given tokenizer gives every string back."""

from collections.abc import Callable, Sequence

import numpy as np

HARD_LINES = (
    "a b\n",
    "  two  spaces\t\r\n",
    "\n",
    " \n",
    "Upper case, \0, é, e\u0301, ﬁ, \u3000, 日本, 😀, \ufeff\n",
    "<s> </s> <unk> <0x41> [UNK] <|endoftext|>, literally\n",
    "a\u2581b \u2581\n",
)
"""Lines of which some tokenizer is known to lose something."""


def lost_line(
    encode: Callable[[list[str]], np.ndarray], decode: Callable[[np.ndarray], str], lines: Sequence[str]
) -> str | None:
    """The first line that doesn't come back from its tokens; None: all do, each at the beginning of a text or not."""
    if decode(encode([*lines])) == "".join(lines):
        return None
    return next((line for line in lines if decode(encode([line])) != line), lines[0])
