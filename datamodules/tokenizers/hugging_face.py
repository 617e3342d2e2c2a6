"""Tokenizers of the library `tokenizers`: a `tokenizer.json` without the steps that change the text."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.tokenizers.roundtrip import (
    HARD_LINES,
    LOSES,
    MARK_PIECES,
    REMEDY,
    SPACE_MARK,
    encode_around_marks,
    lost_line,
)
from datamodules.tokenizers.tokenizer import Tokenizer
from llp.errors import SettingError, require

_SETTINGS = "data.init_args.tokenizer.init_args"
_START_TOKENS = (
    "<s>", "<bos>", "[BOS]", "<|begin_of_text|>", "<|startoftext|>", "<|endoftext|>", "<|end_of_text|>", "</s>",
    "<eos>", "[EOS]",
)  # fmt: skip
"""If a tokenizer itself puts no token before a text, the first of these that it has is the start token."""
_LEFT_OUT = ("NFC", "NFD", "NFKC", "NFKD", "Precompiled", "Nmt", "Prepend", "Strip")
"""The steps that are removed: Unicode normal forms, a space before the text, and the decoder that strips it again."""


class HuggingFaceTokenizer(Tokenizer):
    """A given `tokenizer.json`. Requires the package `tokenizers`: `pip install -e ".[tokenizers]"` in a clone.

    Steps that change the text are disabled, so that decoding returns it exactly: Unicode normalization, the space
    before a text, dropout, truncation, padding, and the removal of spaces next to special tokens. The fingerprint is
    that of the tokenizer without these steps. The names of special tokens are encoded like any other text.

    A tokenizer that still does not return every text is refused, for example one that lowercases, that drops spaces, or
    that has an unknown token instead of bytes.

    Args:
        file: The `tokenizer.json`, or the folder that contains it.
        start_token: The token at the start of each document. By default the one that the tokenizer itself puts before a
            text, or else one with a usual name (`<s>`, `<bos>`, `<|endoftext|>`, ...).

    Raises:
        SettingError: If the file or the start token can't be used, or if decoding does not return the text exactly.
    """

    file_name = "tokenizer.json"

    def __init__(self, file: str, start_token: str | None = None) -> None:
        path = Path(file).expanduser()
        path = path / self.file_name if path.is_dir() else path
        try:
            spec = _without_text_changes(json.loads(path.read_text(encoding="utf-8-sig")))
            given = _open(spec)
        except SettingError:
            raise
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
            remedy = f"can't be read as a tokenizer.json of Hugging Face ({reason}); use another file"
            raise SettingError(f"{_SETTINGS}.file", path, remedy) from error
        start = start_token or _usual_start(given)
        number = None if start is None else given.token_to_id(start)
        if start is None or number is None:
            names = ", ".join(token["content"] for token in spec["added_tokens"][:20]) or "none"
            remedy = f"documents begin with a start token; set it to a token of {path} (special tokens: {names})"
            raise SettingError(f"{_SETTINGS}.start_token", start_token, remedy)
        self.restore(json.dumps(_with_start_token(spec, start, number), ensure_ascii=False).encode())
        specials = [start, *(token["content"] for token in spec["added_tokens"])]
        lost = lost_line(self.tokens_of, self.decode, [*HARD_LINES, *(f"a{special} b\n" for special in specials)])
        require(lost is None, f"{_SETTINGS}.file", path, f"{LOSES.format(lost)}; {REMEDY}")

    def settings(self) -> dict[str, object]:
        return {"tokenizer": "hugging_face", "sha256": self.fingerprint}

    def restore(self, data: bytes) -> None:
        tokenizer = _open(json.loads(data))
        tokenizer.encode_special_tokens = True  # encodes their names as text
        self._data, self._tokenizer = data, tokenizer
        self.vocab_size = 1 + max(tokenizer.get_vocab(with_added_tokens=True).values())
        (self.start_token,) = tokenizer.encode("").ids
        mark = [tokenizer.token_to_id(piece) for piece in MARK_PIECES]
        is_returned = self.decode(tokenizer.encode(SPACE_MARK, add_special_tokens=False).ids) == SPACE_MARK
        self._mark = None if is_returned or None in mark else mark

    def serialized(self) -> bytes:
        return self._data

    def tokens_of(self, lines: list[str]) -> np.ndarray:
        return encode_around_marks(self._rows, lines, self._mark)

    def _rows(self, texts: list[str]) -> list[list[int]]:
        return [row.ids for row in self._tokenizer.encode_batch_fast(texts, add_special_tokens=False)]

    def decode(self, tokens: Iterable[int]) -> str:
        row = np.fromiter(tokens, dtype=np.int64)
        text: str = self._tokenizer.decode(row[row != self.start_token].tolist(), skip_special_tokens=False)
        return text


def _open(spec: dict[str, Any]) -> Any:
    """The library's tokenizer with this content.

    Raises:
        ValueError: If the content does not describe a tokenizer.
    """
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # blocks of text are encoded in processes of our own
    try:
        from tokenizers import Tokenizer as Library  # an extra
    except ImportError as error:
        remedy = 'it needs the package tokenizers: pip install "long-lora-perceiver[tokenizers]"'
        raise SettingError("data.init_args.tokenizer", "HuggingFaceTokenizer", remedy) from error
    try:
        return Library.from_str(json.dumps(spec))
    except Exception as error:  # the library has no exception type of its own
        raise ValueError(f"not a tokenizer: {error}") from error


def _usual_start(tokenizer: Any) -> str | None:
    """The token that a tokenizer puts before a text, or else one with a usual name, if there is one."""
    bare, whole = (tokenizer.encode("a", add_special_tokens=special).tokens for special in (False, True))
    if whole[:1] != bare[:1]:
        return str(whole[0])
    return next((token for token in _START_TOKENS if tokenizer.token_to_id(token) is not None), None)


def _without_text_changes(spec: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer without the steps that change the text, and without dropout, truncation and padding.

    Args:
        spec: The content of the file.

    Raises:
        ValueError: If the content does not describe a tokenizer.
    """
    try:
        parts = {part: _exact(spec[part]) for part in ("normalizer", "pre_tokenizer", "decoder")}
        return {
            **spec,
            **parts,
            "truncation": None,
            "padding": None,
            "added_tokens": [{**token, "lstrip": False, "rstrip": False} for token in spec["added_tokens"]],
            "model": {**spec["model"], "dropout": None} if "dropout" in spec["model"] else spec["model"],
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("it does not describe a tokenizer") from error


def _exact(component: dict[str, Any] | None) -> dict[str, Any] | None:
    """A normalizer, pre-tokenizer or decoder without the steps that change the text; None if nothing is left."""
    if component is None or component["type"] in _LEFT_OUT:
        return None
    if component["type"] == "Sequence":
        (name,) = component.keys() - {"type"}
        parts = [part for part in map(_exact, component[name]) if part is not None]
        return {"type": "Sequence", name: parts} if parts else None
    if component["type"] == "ByteLevel":
        return {**component, "add_prefix_space": False}
    if component["type"] == "Metaspace":
        kept = {key: value for key, value in component.items() if key not in ("add_prefix_space", "str_rep")}
        return {**kept, "prepend_scheme": "never"}
    return component


def _with_start_token(spec: dict[str, Any], token: str, number: int) -> dict[str, Any]:
    """The tokenizer with a post-processor that only puts this special token before each text."""
    others = [added for added in spec["added_tokens"] if added["content"] != token]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = sorted([*others, {"id": number, "content": token, **flags}], key=lambda added: added["id"])
    return {**spec, "added_tokens": added, "post_processor": start_template(token, number)}


def start_template(token: str, number: int) -> dict[str, Any]:
    """The post-processor of a `tokenizer.json` that puts this token before each text."""
    start, text = {"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [start, text],
        "pair": [start, text, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }
