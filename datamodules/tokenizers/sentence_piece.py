"""SentencePiece models, trained on the training split or given."""

import io
import random
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import sentencepiece as spm

from datamodules.tokenizers.roundtrip import HARD_LINES, LOSES, MARK_PIECES, encode_around_marks, lost_line
from datamodules.tokenizers.tokenizer import Tokenizer
from llp.errors import SettingError, require

_SETTINGS = "data.init_args.tokenizer.init_args"
_LONGEST = 1 << 20
"""The longest line in bytes that a model is trained on."""
_FLAGS = (
    "--byte_fallback=true --bos_id=1 --normalization_rule_name=identity --add_dummy_prefix=false "
    "--remove_extra_whitespaces=false --allow_whitespace_only_pieces=true"
)
_SPEC = b"\x0a\x08identity" + b"\x12\x00" + b"\x18\x00" + b"\x20\x00"
"""A NormalizerSpec in protobuf, with its `name` and without `precompiled_charsmap`, dummy prefix or space removal."""
_NO_NORMALIZATION = b"\x1a" + bytes([len(_SPEC)]) + _SPEC
"""The field `normalizer_spec` of a ModelProto. If a field occurs twice, the second one wins."""


class SentencePiece(Tokenizer):
    """A SentencePiece model trained on the training split, or a given one.

    A model that is trained here does not normalize text, and encodes unknown characters as bytes. Newlines and
    WikiText's `<unk>` are always tokens of their own.

    A given model needs byte fallback and a start token (`bos`). If it does not return every text exactly, the steps
    that change the text are disabled: normalization, the removal of spaces, and the space before a text (the dummy
    prefix, which LLaMA's model has). The fingerprint is that of the resulting model.

    Args:
        vocab_size: Number of tokens, including the 256 bytes and 4 special ones.
        model_type: `bpe` or `unigram`.
        sample_lines: Largest number of lines to train on, which are drawn at random.
        seed: Seed of that sample.
        model_file: Path of a given model. The other arguments are then ignored.

    Raises:
        SettingError: If a value can't be used, or if the given model does not return every text.
    """

    file_name = "tokenizer.model"
    _training: dict[str, Any] | None = None
    """The settings of a model that is trained here, or None for a given one."""

    def __init__(
        self,
        vocab_size: int = 32000,
        model_type: Literal["bpe", "unigram"] = "bpe",
        sample_lines: int = 500_000,
        seed: int = 0,
        model_file: str | None = None,
    ) -> None:
        remedy = "set it above 260: 256 bytes and 4 special tokens"
        require(vocab_size > 260, f"{_SETTINGS}.vocab_size", vocab_size, remedy)
        require(sample_lines >= 1, f"{_SETTINGS}.sample_lines", sample_lines, "set it to 1 or more")
        if model_file is not None:
            self._read_given(Path(model_file).expanduser())
            return
        self.vocab_size = vocab_size
        sample = {"sample_lines": sample_lines, "seed": seed}
        self._training = {"vocab_size": vocab_size, "model_type": model_type, **sample}

    def _read_given(self, path: Path) -> None:
        setting = f"{_SETTINGS}.model_file"
        try:
            self.restore(path.read_bytes())
        except (OSError, ValueError) as error:
            raise SettingError(setting, path, "can't be read as a SentencePiece model") from error
        lost = lost_line(self.tokens_of, self.decode, HARD_LINES)
        if lost is not None:
            self.restore(self._model + _NO_NORMALIZATION)
            lost = lost_line(self.tokens_of, self.decode, HARD_LINES)
        advice = f"train it with `spm_train {_FLAGS}`, or leave model_file out"
        require(self.start_token >= 0, setting, path, f"it has no start token; {advice}")
        require(lost is None, setting, path, f"{LOSES.format(lost)}; {advice}")

    def settings(self) -> dict[str, object]:
        if self._training is None:
            return {"tokenizer": "sentencepiece", "model_sha256": self.fingerprint}
        return {"tokenizer": "sentencepiece", **self._training}

    def train(self, lines: Iterable[str]) -> None:
        if self._training is None:
            return
        model = io.BytesIO()
        sample = _sample(_of_length(lines), self._training["sample_lines"], self._training["seed"])
        try:
            spm.SentencePieceTrainer.train(
                sentence_iterator=iter(sample),
                model_writer=model,
                vocab_size=self.vocab_size,
                model_type=self._training["model_type"],
                max_sentence_length=_LONGEST,
                # So that decoding returns every text: no normalization, no trimming, unknown characters as bytes.
                byte_fallback=True,
                normalization_rule_name="identity",
                remove_extra_whitespaces=False,
                add_dummy_prefix=False,
                allow_whitespace_only_pieces=True,
                user_defined_symbols=["\n", "<unk>"],
                unk_piece="<unknown>",  # never produced; its usual name, <unk>, is a word of WikiText
                bos_id=1,
                eos_id=-1,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise SettingError(f"{_SETTINGS}.vocab_size", self.vocab_size, _size_remedy(str(error))) from error
        self.restore(model.getvalue())

    def restore(self, data: bytes) -> None:
        processor = spm.SentencePieceProcessor()
        try:
            processor.load_from_serialized_proto(data)
        except RuntimeError as error:
            raise ValueError(f"not a SentencePiece model: {error}") from error
        self._model, self._processor = data, processor
        self.vocab_size, self.start_token = processor.get_piece_size(), processor.bos_id()
        self._mark = [processor.piece_to_id(piece) for piece in MARK_PIECES]

    def serialized(self) -> bytes:
        return self._model

    def tokens_of(self, lines: list[str]) -> np.ndarray:
        return encode_around_marks(self._processor.encode, lines, self._mark)

    def decode(self, tokens: Iterable[int]) -> str:
        text: str = self._processor.decode([int(token) for token in tokens])
        return text


def _size_remedy(message: str) -> str:
    """The remedy for a vocabulary of the wrong size. SentencePiece states the right one only in its message."""
    if most := re.search(r"value <= (\d+)", message):
        return f"the training text has pieces for {most[1]} tokens; set it to {most[1]} or less"
    if least := re.search(r"\d+ vs (\d+)", message):
        return f"the characters of the training text need {least[1]} tokens; set it to {least[1]} or more"
    return f"the training text does not support it. SentencePiece: {message.rpartition('] ')[2].strip()}"


def _of_length(lines: Iterable[str]) -> Iterator[str]:
    """Yield lines without their line ends. SentencePiece skips lines longer than a mebibyte, so these are cut."""
    for line in lines:
        bare = line.rstrip("\n")
        if 4 * len(bare) <= _LONGEST or len(bare.encode()) <= _LONGEST:
            yield bare
        else:  # into pieces no longer than a paragraph, because the sample is in memory
            yield from re.findall(r".{1,4096}(?=\s|\Z)|.{1,4096}", bare, re.DOTALL)


def _sample(lines: Iterable[str], size: int, seed: int) -> list[str]:
    """At most `size` of the lines, all equally likely (reservoir sampling: one pass, bounded memory)."""
    rng = random.Random(seed)
    sample: list[str] = []
    for number, line in enumerate(lines):
        if number < size:
            sample.append(line)
        elif (index := int(rng.random() * (number + 1))) < size:
            sample[index] = line
    return sample
