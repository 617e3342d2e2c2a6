"""The base class of the tokenizers."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, Self

import numpy as np

from datamodules.token_files import unusable
from datamodules.tokenizers.roundtrip import LOSES, REMEDY
from llp.errors import SettingError


class Tokenizer(ABC):
    """Encodes text as tokens, and decodes tokens. `vocab_size` is known before the tokenizer is trained."""

    file_name: ClassVar[str]
    """Name of the file that `save` writes."""
    vocab_size: int
    start_token: int
    """The token at the start of each document, which has no text."""
    made_with: dict[str, object] | None = None
    """The original `settings` of a restored tokenizer."""

    @abstractmethod
    def settings(self) -> dict[str, object]:
        """What determines the tokenizer, apart from the text it is trained on."""

    def train(self, lines: Iterable[str]) -> None:  # noqa: B027
        """Train the tokenizer on lines of text, unless it is a given one."""

    @abstractmethod
    def restore(self, data: bytes) -> None:
        """Restore the tokenizer from bytes, regardless of its arguments.

        Args:
            data: What `serialized` returned.

        Raises:
            ValueError: If the bytes are not such a tokenizer.
        """

    @abstractmethod
    def serialized(self) -> bytes:
        """The whole tokenizer as bytes."""

    @classmethod
    def restored(cls, data: bytes, made_with: dict[str, object]) -> Self:
        """Create a tokenizer from what `serialized` returned. The file of a given tokenizer is not needed.

        Args:
            data: What `serialized` returned.
            made_with: The `settings` of that tokenizer.
        """
        tokenizer = cls.__new__(cls)
        tokenizer.made_with = made_with
        tokenizer.restore(data)
        return tokenizer

    def save(self, folder: Path) -> None:
        """Write what `load` reads."""
        (folder / self.file_name).write_bytes(self.serialized())

    def load(self, folder: Path, fingerprint: str) -> None:
        """Read what `save` wrote.

        Raises:
            SettingError: If the file is missing or damaged, or if its fingerprint is another one.
        """
        path = folder / self.file_name
        try:
            self.restore(path.read_bytes())
        except (OSError, ValueError) as error:
            raise unusable(path) from error
        if self.fingerprint != fingerprint:
            raise unusable(path)

    @property
    def fingerprint(self) -> str:
        """A digest of the tokenizer. Tokenizers with the same fingerprint encode alike."""
        return hashlib.sha256(self.serialized()).hexdigest()

    def encode(self, lines: list[str]) -> np.ndarray:
        """Token ids of lines of text: (N,). Each line includes its line end, and no token spans two lines.

        Raises:
            SettingError: If decoding does not return the text. This is checked for every text, because tests on other
                texts can't exclude it.
        """
        tokens, text = self.tokens_of(lines), "".join(lines)
        if (returned := self.decode(tokens.tolist())) != text:
            pairs = enumerate(zip(text, returned, strict=False))
            place = next((place for place, (one, other) in pairs if one != other), min(len(text), len(returned)))
            lost = text[max(0, place - 20) : place + 20]
            raise SettingError("data.init_args.tokenizer", type(self).__name__, f"{LOSES.format(lost)}; {REMEDY}")
        return tokens

    @abstractmethod
    def tokens_of(self, lines: list[str]) -> np.ndarray:
        """What `encode` returns, without its check."""

    @abstractmethod
    def decode(self, tokens: Iterable[int]) -> str:
        """The text of token ids. A start token has no text."""
