"""Checks that a tokenizer returns every string, and makes it return U+2581, with which SentencePiece marks spaces.

This character is encoded as its three bytes, because otherwise it would be decoded as a space.
"""

from collections.abc import Callable, Sequence
from itertools import chain

import numpy as np

SPACE_MARK = "\N{LOWER ONE EIGHTH BLOCK}"
MARK_PIECES = [f"<0x{byte:02X}>" for byte in SPACE_MARK.encode()]
"""The names of the three bytes in a vocabulary with byte fallback."""
HARD_LINES = (
    "a b\n",
    "  two  spaces\t\r\n",
    "\n",
    " \n",
    "Upper case, \0, é, e\u0301, ﬁ, \u3000, 日本, 😀, \ufeff\n",
    "<s> </s> <unk> <0x41> [UNK] <|endoftext|>, literally\n",
    "a\u2581b \u2581\n",
)
"""Lines that some tokenizers are known not to return exactly."""

LOSES = "it does not return every string, for example {!r}"
REMEDY = "use one that falls back to bytes (byte-level BPE, or BPE with byte_fallback) and keeps case and spaces"


def lost_line(
    encode: Callable[[list[str]], np.ndarray], decode: Callable[[np.ndarray], str], lines: Sequence[str]
) -> str | None:
    """A line that decoding does not return, alone or after other lines; None if all lines are returned."""
    if decode(encode([*lines])) == "".join(lines):
        return None
    return next((line for line in lines if decode(encode([line])) != line), lines[0])


def encode_around_marks(
    encode: Callable[[list[str]], list[list[int]]], lines: list[str], mark: list[int] | None
) -> np.ndarray:
    """The tokens of lines in one row, with the tokens `mark` in place of each U+2581: (N,).

    Args:
        encode: Returns the tokens of each of several texts.
        lines: The lines.
        mark: The tokens of the three bytes, or None if the tokenizer returns U+2581 anyway.
    """
    if mark is None or not any(SPACE_MARK in line for line in lines):
        rows = encode(lines)
    else:
        rows = [_encode_marked(encode, line, mark) for line in lines]
    return np.fromiter(chain.from_iterable(rows), dtype=np.int64)


def _encode_marked(encode: Callable[[list[str]], list[list[int]]], line: str, mark: list[int]) -> list[int]:
    first, *rest = encode(line.split(SPACE_MARK))
    return first + [token for row in rest for token in (*mark, *row)]
