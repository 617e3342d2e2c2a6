"""Tokenizers: text to tokens and back, every string exactly. A tokenizer is made once, on the training split."""

import hashlib
import io
import random
from abc import ABC, abstractmethod
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import sentencepiece as spm

from llp.errors import SettingError, require

_SPACE = "\N{LOWER ONE EIGHTH BLOCK}"  # how SentencePiece writes a space: U+2581


class Tokenizer(ABC):
    """Text to tokens and back. `vocab_size` is known before the tokenizer is trained."""

    vocab_size: int
    start_token: int
    """The token that a document begins with; it stands for no text."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What determines the tokenizer beside the text it is trained on."""

    @abstractmethod
    def is_trained(self, folder: Path) -> bool:
        """Whether `train` has written all of its work into `folder`."""

    @abstractmethod
    def train(self, lines: Iterable[str], folder: Path) -> None:
        """Make the tokenizer from lines of text and write it into `folder`."""

    @abstractmethod
    def load(self, folder: Path) -> None:
        """Read what `train` wrote."""

    @abstractmethod
    def serialized(self) -> bytes:
        """All of a trained tokenizer."""

    @classmethod
    @abstractmethod
    def restored(cls, data: bytes) -> "Tokenizer":
        """The tokenizer that was `serialized`."""

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


class Bytes(Tokenizer):
    """UTF-8 bytes as tokens, and token 256 to start a document."""

    vocab_size = 257
    start_token = 256

    def settings(self) -> dict[str, Any]:
        return {"tokenizer": "bytes"}

    def is_trained(self, folder: Path) -> bool:
        return True

    def train(self, lines: Iterable[str], folder: Path) -> None:
        pass

    def load(self, folder: Path) -> None:
        pass

    def serialized(self) -> bytes:
        return b""

    @classmethod
    def restored(cls, data: bytes) -> "Bytes":
        return cls()

    @property
    def fingerprint(self) -> str:
        return "bytes"

    def encode(self, lines: list[str]) -> np.ndarray:
        return np.frombuffer("".join(lines).encode(), dtype=np.uint8)

    def decode(self, tokens: Iterable[int]) -> str:
        return bytes(token for token in tokens if token != self.start_token).decode(errors="replace")


class SentencePiece(Tokenizer):
    """A SentencePiece model trained on the training split, or a given one.

    Trained here it normalises nothing, and unknown characters become bytes; newlines and WikiText's `<unk>` are always
    tokens of their own.

    Args:
        vocab_size: Number of tokens, the 256 bytes and 4 special ones among them.
        model_type: `bpe` or `unigram`.
        sample_lines: Train on at most so many lines, drawn at random.
        seed: Of that sample.
        model_file: A given model instead; `vocab_size` and what follows it have no meaning then.

    Raises:
        SettingError: If a value can't be used, or the given model does not give every string back.
    """

    def __init__(
        self,
        vocab_size: int = 32000,
        model_type: Literal["bpe", "unigram"] = "bpe",
        sample_lines: int = 500_000,
        seed: int = 0,
        model_file: str | None = None,
    ) -> None:
        require(vocab_size > 260, "tokenizer.vocab_size", vocab_size, "set it above 260: 256 bytes, 4 special ones")
        require(sample_lines >= 1, "tokenizer.sample_lines", sample_lines, "set it to 1 or more")
        self.vocab_size, self.model_type, self.sample_lines, self.seed = vocab_size, model_type, sample_lines, seed
        self._processor = spm.SentencePieceProcessor()
        self._given = None if model_file is None else self._read_given(model_file)

    def _read_given(self, model_file: str) -> bytes:
        try:
            model = Path(model_file).expanduser().read_bytes()
            self._open(model)
        except (OSError, RuntimeError) as error:
            raise SettingError("tokenizer.model_file", model_file, "can't be read as a SentencePiece model") from error
        self.vocab_size = self._processor.get_piece_size()
        for text in ("a b\n", "  two  spaces\t\r\n", "\0 é e\u0301 ﬁ 日本 😀 <s> </s> <unk>", " \n", f"a{_SPACE}b"):
            if self._processor.bos_id() < 0 or self.decode(self.encode([text])) != text:
                remedy = (
                    "it does not give every string back; train it with byte_fallback, no normalisation, "
                    "no dummy prefix, no whitespace removed and <s>, or leave model_file out"
                )
                raise SettingError("tokenizer.model_file", model_file, remedy)
        return model

    def settings(self) -> dict[str, Any]:
        if self._given is not None:
            return {"tokenizer": "sentencepiece", "model_sha256": hashlib.sha256(self._given).hexdigest()}
        return {
            "tokenizer": "sentencepiece",
            "vocab_size": self.vocab_size,
            "model_type": self.model_type,
            "sample_lines": self.sample_lines,
            "seed": self.seed,
        }

    def is_trained(self, folder: Path) -> bool:
        return (folder / "tokenizer.model").exists()

    def train(self, lines: Iterable[str], folder: Path) -> None:
        model = self._trained(lines) if self._given is None else self._given
        temporary = folder / ".tokenizer.model"
        temporary.write_bytes(model)
        temporary.rename(folder / "tokenizer.model")

    def _trained(self, lines: Iterable[str]) -> bytes:
        model = io.BytesIO()
        try:
            spm.SentencePieceTrainer.train(
                sentence_iterator=iter(_sample((line.rstrip("\n") for line in lines), self.sample_lines, self.seed)),
                model_writer=model,
                vocab_size=self.vocab_size,
                model_type=self.model_type,
                max_sentence_length=1 << 20,
                # Every string comes back exactly: nothing normalised, nothing trimmed, unknown characters as bytes.
                byte_fallback=True,
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                add_dummy_prefix=False,
                allow_whitespace_only_pieces=True,
                user_defined_symbols=["\n", "<unk>"],
                unk_piece="<unknown>",  # never produced; its usual name is a word of WikiText
                bos_id=1,
                eos_id=-1,
                minloglevel=2,
            )
        except RuntimeError as error:
            reason = str(error).rpartition("] ")[2].strip()
            raise SettingError(
                "data.init_args.tokenizer.init_args.vocab_size",
                self.vocab_size,
                f"the training text does not support it. SentencePiece: {reason}",
            ) from error
        return model.getvalue()

    def load(self, folder: Path) -> None:
        path = folder / "tokenizer.model"
        try:
            self._open(path.read_bytes())
        except (OSError, RuntimeError) as error:
            raise SettingError(
                "data.init_args.cache_dir",
                folder.parent,
                f"{path} is missing or damaged; remove {folder}, the next run makes it anew",
            ) from error

    def _open(self, model: bytes) -> None:
        self._processor.load_from_serialized_proto(model)
        self.start_token = self._processor.bos_id()
        # U+2581 would come back as the space it stands for: it is written as its three bytes.
        self._space_bytes = [self._processor.piece_to_id(f"<0x{byte:02X}>") for byte in _SPACE.encode()]

    def serialized(self) -> bytes:
        return bytes(self._processor.serialized_model_proto())

    @classmethod
    def restored(cls, data: bytes) -> "SentencePiece":
        tokenizer = cls()
        tokenizer._given = data
        tokenizer._open(data)
        tokenizer.vocab_size = tokenizer._processor.get_piece_size()
        return tokenizer

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(self._processor.serialized_model_proto()).hexdigest()

    def encode(self, lines: list[str]) -> np.ndarray:
        rows = self._processor.encode(lines)
        if any(_SPACE in line for line in lines):
            rows = [self._encode_spaces(line) if _SPACE in line else row for line, row in zip(lines, rows, strict=True)]
        return np.fromiter(chain.from_iterable(rows), dtype=np.int64)

    def _encode_spaces(self, line: str) -> list[int]:
        first, *rest = self._processor.encode(line.split(_SPACE))
        return first + [token for row in rest for token in (*self._space_bytes, *row)]

    def decode(self, tokens: Iterable[int]) -> str:
        return self._processor.decode([int(token) for token in tokens])


def _sample(lines: Iterable[str], size: int, seed: int) -> list[str]:
    """At most `size` of the lines, each with the same chance (reservoir sampling: one pass, bounded memory)."""
    rng = random.Random(seed)
    sample: list[str] = []
    for number, line in enumerate(lines):
        if number < size:
            sample.append(line)
        elif (place := int(rng.random() * (number + 1))) < size:
            sample[place] = line
    return sample
