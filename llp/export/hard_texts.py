"""Texts on which tokenizers differ, if they differ at all."""

import random
from collections.abc import Callable, Iterator, Sequence

from datamodules.tokenizers.roundtrip import HARD_LINES

HARD_TEXTS = (
    *HARD_LINES,
    "", " ", "  ", "   \t  ", "\n\n\n", "\r", "\r\n\r\n", "\t", "a", " a", "a ", " a ", "  a", "a\nb", "a \n b", "\na",
    "****", "--------", "== Title ==", "@-@ @,@ @.@", "don't can't", "x=1;y+=2", "1,234.5678", "http://a.b/c?d=e&f#g",
    "<s>", "</s>", "<unk>", "<unknown>", "<pad>", "<0x0A>", "<0xFF>", "a<s>b", "\u2581", "\u2581\u2581a", " \u2581 ",
    "Ünïcode", "e\u0301e\u0301", "\u1e9b\u0323", "ﬁﬂ", "\uff21\uff22", "Ελληνικά", "кириллица", "עברית", "العربية",
    "ไทย", "日本語テキスト", "한국어", "😀👍🏽👨‍👩‍👧",
    "\U0001f1e9\U0001f1ea", "\u200b\u200d\ufeff", "\0\x01\x7f", "\xa0\u3000\u2009",
    "\x0b\x0c\x1c\x85\u2028\u2029", "\U0010ffff\ue000\ufffd", "a" * 300, "ab " * 100,
)  # fmt: skip

_RANGES = ((32, 127), (0, 32), (160, 592), (768, 880), (1024, 1280), (9600, 9632), (12352, 12544), (128512, 128592))
"""Of characters: ASCII, control characters, Latin, combining marks, Cyrillic, blocks, kana, emoji."""


def trial_texts(decode: Callable[[list[int]], str], vocab_size: int, seed: int = 0) -> Iterator[str]:
    """The hard texts, then random ones of characters and of a vocabulary's own pieces, the same each time.

    Args:
        decode: Gives the text of tokens.
        vocab_size: Number of tokens.
        seed: Seed of the random texts.
    """
    rng = random.Random(seed)
    yield from HARD_TEXTS
    for _ in range(300):
        yield "".join(chr(rng.randrange(*rng.choice(_RANGES))) for _ in range(rng.randint(1, 40)))
    for _ in range(700):
        yield "".join(decode([rng.randrange(vocab_size)]) for _ in range(rng.randint(2, 12)))


def first_difference(
    encode: Callable[[str], Sequence[int]], other: Callable[[str], Sequence[int]], texts: Sequence[str]
) -> str | None:
    """The first of the texts whose tokens differ; None: there is none."""
    return next((text for text in texts if list(encode(text)) != list(other(text))), None)
