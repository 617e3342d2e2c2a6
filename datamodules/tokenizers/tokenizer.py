"""What every tokenizer does, and how it is stored."""

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
    """Text to tokens and back. `vocab_size` is known before the tokenizer is trained."""

    file_name: ClassVar[str]
    """Name of the file that `save` writes."""
    vocab_size: int
    start_token: int
    """The token that a document begins with; it has no text."""
    made_with: dict[str, object] | None = None
    """The `settings` that a restored tokenizer was made with."""

    @abstractmethod
    def settings(self) -> dict[str, object]:
        """What determines the tokenizer, apart from the text it is trained on."""

    def train(self, lines: Iterable[str]) -> None:  # noqa: B027
        """Make the tokenizer from lines of text, unless it is a given one."""

    @abstractmethod
    def restore(self, data: bytes) -> None:
        """Make the tokenizer ready to encode and decode, regardless of its arguments.

        Args:
            data: What `serialized` returned.

        Raises:
            ValueError: If it is not such a tokenizer.
        """

    @abstractmethod
    def serialized(self) -> bytes:
        """The whole tokenizer as bytes."""

    @classmethod
    def restored(cls, data: bytes, made_with: dict[str, object]) -> Self:
        """A tokenizer from what `serialized` returned, without the file that it was made from.

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
            SettingError: If it is missing or damaged, or is not the tokenizer with this fingerprint.
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
        """A digest, equal for tokenizers that encode alike."""
        return hashlib.sha256(self.serialized()).hexdigest()

    def encode(self, lines: list[str]) -> np.ndarray:
        """Token ids of lines of text, each with its line end, which no token crosses: (N,).

        Raises:
            SettingError: If the tokens don't return the text, which only the text itself can tell for certain.
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
        """What `encode` returns, unchecked."""

    @abstractmethod
    def decode(self, tokens: Iterable[int]) -> str:
        """The text of token ids; a start token has none."""
