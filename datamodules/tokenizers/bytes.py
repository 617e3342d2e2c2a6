"""Bytes as tokens."""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from datamodules.tokenizers.tokenizer import Tokenizer


class Bytes(Tokenizer):
    """UTF-8 bytes as tokens. Token 256 is the start token."""

    file_name = "tokenizer.bytes"  # empty; a prepared folder has none
    vocab_size = 257
    start_token = 256

    def settings(self) -> dict[str, object]:
        return {"tokenizer": "bytes"}

    def save(self, folder: Path) -> None:
        pass

    def load(self, folder: Path, fingerprint: str) -> None:
        pass

    def restore(self, data: bytes) -> None:
        pass

    def serialized(self) -> bytes:
        return b""

    @property
    def fingerprint(self) -> str:
        return "bytes"

    def encode(self, lines: list[str]) -> np.ndarray:
        return np.frombuffer("".join(lines).encode(), dtype=np.uint8)

    tokens_of = encode

    def decode(self, tokens: Iterable[int]) -> str:
        return bytes(token for token in tokens if token != self.start_token).decode(errors="replace")
