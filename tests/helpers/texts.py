"""Texts that are hard on a tokenizer, what every tokenizer must make of them, and a tokenizer of bytes."""

import random
from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TEXT = "the cat sat on a mat and looked at another dog which did not move while birds were singing outside"
LINES = [" ".join(random.Random(i).choices(TEXT.split(), k=9)) + f" {i} .\n" for i in range(300)]
STRANGE = [
    "", "\n", " \n", "  two  spaces \n\n\ttab\r\n", "never seen: 日本語 😀 Ω ﬁ e\u0301 \u00e9 \u3000 \ufeff", "CASE\n",
    "nul \0 and <0x41> <s> </s> <unk> <unknown> <|endoftext|> [PAD] literally", "a <|endoftext|> b<|endoftext|>",
    "  </s>  ", "\u2581", "a\u2581b \u2581\u2581 c", " \u2581 \n",
]  # fmt: skip


def assert_every_string_comes_back(tokenizer):
    """Alone and behind the start token, which is in no text; no token crosses the end of a line."""
    for text in STRANGE:
        tokens = tokenizer.encode(text.splitlines(keepends=True) or [""])
        assert tokenizer.decode([tokenizer.start_token, *tokens]) == tokenizer.decode(tokens) == text
        assert tokenizer.start_token not in tokens
        assert all(0 <= token < tokenizer.vocab_size for token in tokens)
    lines = [*LINES[:9], *STRANGE, *LINES[9:20]]
    tokens = tokenizer.encode(lines).tolist()
    assert tokenizer.decode(tokens) == "".join(lines)
    assert tokens == [token for line in lines for token in tokenizer.encode([line]).tolist()]


def assert_restored_from_its_bytes(tokenizer, restored):
    assert_every_string_comes_back(restored)
    lines = [*LINES[:20], *STRANGE]
    assert restored.encode(lines).tolist() == tokenizer.encode(lines).tolist()
    for name in ("vocab_size", "start_token", "fingerprint"):
        assert getattr(restored, name) == getattr(tokenizer, name)
    assert restored.serialized() == tokenizer.serialized()


def byte_level(
    lines: Iterable[str],
    vocab_size: int = 330,
    special_tokens: Iterable[str] = ("<|endoftext|>",),
    add_prefix_space: bool = False,
) -> Tokenizer:
    """A `tokenizer.json` as GPT-2's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    settings = {"special_tokens": [*special_tokens], "initial_alphabet": pre_tokenizers.ByteLevel.alphabet()}
    tokenizer.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=vocab_size, show_progress=False, **settings))
    return tokenizer
