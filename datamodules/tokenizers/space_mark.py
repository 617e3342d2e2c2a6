"""U+2581, with which SentencePiece writes a space: as text it goes in as its three bytes, or it would become one."""

from collections.abc import Callable
from itertools import chain

import numpy as np

SPACE_MARK = "\N{LOWER ONE EIGHTH BLOCK}"
MARK_PIECES = [f"<0x{byte:02X}>" for byte in SPACE_MARK.encode()]
"""The names of the three bytes in a vocabulary with byte fallback."""


def encode_around_marks(
    encode: Callable[[list[str]], list[list[int]]], lines: list[str], mark: list[int] | None
) -> np.ndarray:
    """The tokens of lines in one row, with the tokens `mark` wherever a line has U+2581.

    Args:
        encode: Gives the tokens of each of several texts.
        lines: The lines.
        mark: The tokens of the three bytes; None: `encode` takes U+2581 for what it is.
    """
    if mark is None or not any(SPACE_MARK in line for line in lines):
        rows = encode(lines)
    else:
        rows = [_encode_marked(encode, line, mark) for line in lines]
    return np.fromiter(chain.from_iterable(rows), dtype=np.int64)


def _encode_marked(encode: Callable[[list[str]], list[list[int]]], line: str, mark: list[int]) -> list[int]:
    first, *rest = encode(line.split(SPACE_MARK))
    return first + [token for row in rest for token in (*mark, *row)]
