"""What every tokenizer does, and how a trained one is kept."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from datamodules.prepared_folder import unusable
from llp.atomic_files import whole_file


class Tokenizer(ABC):
    """Text to tokens and back. `vocab_size` is known before the tokenizer is trained."""

    file_name: ClassVar[str]
    """Of what `train` writes."""
    vocab_size: int
    start_token: int
    """The token that a document begins with; it stands for no text."""
    made_with: dict[str, Any] | None = None
    """Of a restored tokenizer the `settings` that it was made with."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What determines the tokenizer, apart from the text it is trained on."""

    @abstractmethod
    def made_from(self, lines: Iterable[str]) -> bytes:
        """Make the tokenizer from lines of text; returns what `restore` takes."""

    @abstractmethod
    def restore(self, data: bytes) -> None:
        """Make the tokenizer ready to encode and decode, whatever it was constructed with.

        Args:
            data: What `serialized` gave.

        Raises:
            ValueError: If it is no such tokenizer.
        """

    @abstractmethod
    def serialized(self) -> bytes:
        """The whole tokenizer, ready as it is."""

    @classmethod
    def restored(cls, data: bytes, made_with: dict[str, Any]) -> Self:
        """The tokenizer that `serialized` gave, without the file that it was made from.

        Args:
            data: What `serialized` gave.
            made_with: The `settings` of the tokenizer that gave it.
        """
        tokenizer = cls.__new__(cls)
        tokenizer.made_with = made_with
        tokenizer.restore(data)
        return tokenizer

    def is_trained(self, folder: Path) -> bool:
        """Whether `train` has written all of its work into `folder`."""
        return (folder / self.file_name).exists()

    def train(self, lines: Iterable[str], folder: Path) -> None:
        """Make the tokenizer from lines of text, unless it is restored, and write it into `folder`, whole or not."""
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
        """Equal for tokenizers that encode alike."""

    @abstractmethod
    def encode(self, lines: list[str]) -> np.ndarray:
        """Tokens of the lines' text in one row. A line holds its line end; no token crosses it."""

    @abstractmethod
    def decode(self, tokens: Iterable[int]) -> str:
        """The text of tokens; a start token gives none."""
