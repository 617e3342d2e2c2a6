"""A tokenizer of nineteen tokens: a letter each, or two where they are `ab`; and a model that uses it."""

import re

import numpy as np
import torch

from helpers.small_models import build
from llp.text_model import TextModel

LETTERS = "abcdefghijklmno \n"  # 0 .. 16
PAIR, START = 17, 18


class Letters:
    """Encodes `ab` as one token; the start token comes in no text."""

    vocab_size, fingerprint = START + 1, "letters"

    def encode(self, lines):
        pieces = re.findall(r"ab|.", "".join(lines), re.DOTALL)
        return np.array([PAIR if piece == "ab" else LETTERS.index(piece) for piece in pieces], dtype=np.int64)

    def decode(self, tokens):
        return "".join("ab" if token == PAIR else LETTERS[token] for token in tokens if token != START)


def lettered(name, window_len=12, **settings):
    """A small model of an architecture, in float64, that writes letters alone and never ends."""
    module = build(name, **settings)
    with torch.no_grad():
        module.decoder.head.bias[[PAIR, START]] -= 100
    return TextModel(module, Letters(), START, module.geometry.scoring_window(window_len))
