"""What every tokenizer does, and how a trained one is stored."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from datamodules.token_files import unusable
from llp.atomic_files import whole_file


class Tokenizer(ABC):
    """Text to tokens and back. `vocab_size` is known before the tokenizer is trained."""

    file_name: ClassVar[str]
    """Name of the file that `train` writes."""
    vocab_size: int
    start_token: int
    """The token that a document begins with; it has no text."""
    made_with: dict[str, Any] | None = None
    """The `settings` that a restored tokenizer was made with."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What determines the tokenizer, apart from the text it is trained on."""

    @abstractmethod
    def made_from(self, lines: Iterable[str]) -> bytes:
        """Make the tokenizer from lines of text; returns what `restore` takes."""

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
    def restored(cls, data: bytes, made_with: dict[str, Any]) -> Self:
        """A tokenizer from what `serialized` returned, without the file that it was made from.

        Args:
            data: What `serialized` returned.
            made_with: The `settings` of that tokenizer.
        """
        tokenizer = cls.__new__(cls)
        tokenizer.made_with = made_with
        tokenizer.restore(data)
        return tokenizer

    def is_trained(self, folder: Path) -> bool:
        """Whether `train` has written all of its work into `folder`."""
        return (folder / self.file_name).exists()

    def train(self, lines: Iterable[str], folder: Path) -> None:
        """Make the tokenizer from lines of text, unless it is restored, and write it to `folder` in one step."""
        if self.made_with is None:
            self.restore(self.made_from(lines))
        with whole_file(folder / self.file_name, keeps_older=False) as temporary:
            temporary.write_bytes(self.serialized())

    def load(self, folder: Path) -> None:
        """Read what `train` wrote.

        Raises:
            SettingError: If it is missing or damaged.
        """
        path = folder / self.file_name
        try:
            self.restore(path.read_bytes())
        except (OSError, ValueError) as error:
            raise unusable(path) from error

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """A digest, equal for tokenizers that encode alike."""

    @abstractmethod
    def encode(self, lines: list[str]) -> np.ndarray:
        """Token ids of lines of text, each with its line end, which no token crosses: (N,)."""

    @abstractmethod
    def decode(self, tokens: Iterable[int]) -> str:
        """The text of token ids; a start token has none."""
