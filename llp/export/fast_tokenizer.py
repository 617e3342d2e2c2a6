"""A model's tokenizer as a fast tokenizer of transformers, if that gives exactly the same tokens.

Each export tries it: it encodes texts on which tokenizers tend to differ with both.
"""

import json
import os
import random
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from datamodules.tokenizers import Bytes, HuggingFaceTokenizer, SentencePiece, Tokenizer
from datamodules.tokenizers.roundtrip import HARD_LINES, SPACE_MARK

_LINE_ENDS = "\r\n|[\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029]"
"""Line ends, which no token crosses."""
_NORMAL, _UNKNOWN, _CONTROL, _OWN_SYMBOL, _BYTE = 1, 2, 3, 4, 6  # types of pieces of SentencePiece
_RANGES = ((32, 127), (0, 32), (127, 592), (768, 880), (1024, 1280), (8192, 8240), (9600, 9632), (12352, 12544),
           (128512, 128592))  # fmt: skip
"""Of characters: ASCII, control characters, Latin, combining marks, Cyrillic, spaces, blocks, kana, emoji."""


class FastTokenizer(NamedTuple):
    """A tokenizer in an exported folder."""

    own_file: str
    """The name of the file that llp reads its own tokenizer from."""
    files: dict[str, dict[str, Any]]
    """What transformers reads, by the file's name; empty if no fast tokenizer is exact."""
    token_ids: dict[str, int | None]
    """The tokens that begin, end and pad a text, by their names in a configuration."""
    note: str
    """One sentence for the user."""


class _NotExactError(Exception):
    """Why a fast tokenizer would not be exact."""


def fast_tokenizer(own: Tokenizer, start_token: int) -> FastTokenizer:
    """The fast tokenizer that puts the start token before each text, if it gives the same tokens as `own`.

    Args:
        own: The tokenizer, ready to encode.
        start_token: The token that a document begins with.
    """
    own_file = "llp_tokenizer.json" if own.file_name == "tokenizer.json" else own.file_name
    # If the token that begins texts also padded them, `generate` would take it for padding.
    token_ids: dict[str, int | None] = dict.fromkeys(("bos_token_id", "eos_token_id"), start_token)
    token_ids["pad_token_id"] = None
    try:
        spec, special, padding = _spec(own, start_token)
        n_texts = _try(own, spec, start_token)
    except _NotExactError as difference:
        note = f"No tokenizer.json: {difference}. {own_file} is what llp reads; give other programs tokens"
        return FastTokenizer(own_file, {}, token_ids, note)
    names = {"bos_token": special, "eos_token": special, "pad_token": padding or special}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",  # the only name that 4.57 knows
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,  # a special token's name in a text is text
        "model_max_length": 10**30,
        "model_input_names": ["input_ids", "attention_mask"],
        **{name: token for name, token in names.items() if token is not None},
    }
    if padding is not None:
        token_ids["pad_token_id"] = spec["model"]["vocab"][padding]
    note = f"tokenizer.json gives the tokens of llp's own tokenizer, tried on {n_texts:,} texts"
    return FastTokenizer(own_file, {"tokenizer.json": spec, "tokenizer_config.json": settings}, token_ids, note)


def _spec(own: Tokenizer, start_token: int) -> tuple[dict[str, Any], str | None, str | None]:
    """The content of `tokenizer.json`, the start token's name if it is a special token, and a token for padding."""
    if isinstance(own, Bytes):
        vocab = {_byte_name(byte): byte for byte in range(256)} | {"<s>": own.start_token}
        special = start_token == own.start_token
        start = "<s>" if special else _byte_name(start_token)
        return _byte_fallback(vocab, [], {"<s>": True}, start), start if special else None, None
    if isinstance(own, SentencePiece):
        return _sentence_piece_spec(own, start_token)
    if isinstance(own, HuggingFaceTokenizer):
        return _given_spec(own, start_token)
    raise _NotExactError(f"{type(own).__name__} has no form that transformers reads")


def _sentence_piece_spec(own: SentencePiece, start_token: int) -> tuple[dict[str, Any], str | None, str | None]:
    from sentencepiece import sentencepiece_model_pb2  # its protobuf takes a while, and only this needs it

    proto: Any = sentencepiece_model_pb2
    model = proto.ModelProto.FromString(own.serialized())
    if model.trainer_spec.model_type != model.trainer_spec.BPE:
        raise _NotExactError("a unigram model breaks ties in ways that transformers does not; only BPE is exact there")
    pieces = [(_text(piece.piece) if piece.type != _BYTE else piece.piece, piece.type) for piece in model.pieces]
    vocab = {text: number for number, (text, _) in enumerate(pieces)}
    added = {text: kind != _OWN_SYMBOL for text, kind in pieces if kind in (_UNKNOWN, _CONTROL, _OWN_SYMBOL)}
    scores = {text: model.pieces[number].score for number, (text, kind) in enumerate(pieces) if kind == _NORMAL}
    start, kind = pieces[start_token]
    padding = next((text for text, kind in pieces if kind == _UNKNOWN), None)  # it is never produced
    return _byte_fallback(vocab, merges(scores), added, start), start if kind == _CONTROL else None, padding


def merges(scores: dict[str, float]) -> list[list[str]]:
    """The merges of a BPE model, the most likely piece first: each piece from any two others."""
    ordered = sorted(scores, key=lambda text: -scores[text])
    pairs = ((text[:place], text[place:]) for text in ordered for place in range(1, len(text)))
    return [[left, right] for left, right in pairs if left in scores and right in scores]


def _byte_fallback(vocab: dict[str, int], pairs: list[list[str]], added: dict[str, bool], start: str) -> dict[str, Any]:
    """A BPE model that encodes unknown characters as bytes and changes nothing in a text.

    Args:
        vocab: The id of each token.
        pairs: The merges, in their order.
        added: Tokens that are looked up in the text first, and whether they are special.
        start: The token before each text.
    """
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
    model = {"type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": vocab[text], "content": text, **flags, "special": special} for text, special in added.items()
        ],
        "normalizer": None,
        "pre_tokenizer": _line_by_line(None),
        "post_processor": _template(start, vocab[start]),
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {
            **model,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": pairs,
        },
    }


def _given_spec(own: HuggingFaceTokenizer, start_token: int) -> tuple[dict[str, Any], str | None, str | None]:
    """The given file, with a text cut into lines first, as llp does."""
    spec = json.loads(own.serialized())
    spec["pre_tokenizer"] = _line_by_line(spec["pre_tokenizer"])
    start = _library(spec).id_to_token(start_token)
    spec["post_processor"] = _template(start, start_token)
    special = any(token["content"] == start and token["special"] for token in spec["added_tokens"])
    return spec, start if special else None, None


def _line_by_line(pre_tokenizer: dict[str, Any] | None) -> dict[str, Any]:
    split = {"type": "Split", "pattern": {"Regex": _LINE_ENDS}, "behavior": "MergedWithPrevious", "invert": False}
    return split if pre_tokenizer is None else {"type": "Sequence", "pretokenizers": [split, pre_tokenizer]}


def _template(token: str, number: int) -> dict[str, Any]:
    """The start token before each text, special or not."""
    start, text = {"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    return {
        "type": "TemplateProcessing",
        "single": [start, text],
        "pair": [start, text, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }


def _try(own: Tokenizer, spec: dict[str, Any], start_token: int) -> int:
    """Encode and decode hard texts with both; returns how many."""
    fast = _library(spec)
    fast.encode_special_tokens = True  # what `split_special_tokens` sets
    texts = list(trial_texts(own.decode, own.vocab_size))
    for text in texts:
        tokens = own.encode(text.splitlines(keepends=True)).tolist()
        if fast.encode(text).ids != [start_token, *tokens]:
            raise _NotExactError(f"it would give {text!r} other tokens than llp's own tokenizer does")
        if fast.decode(tokens, skip_special_tokens=False) != text:
            raise _NotExactError(f"it would not give {text!r} back")
    return len(texts)


def trial_texts(decode: Callable[[list[int]], str], vocab_size: int, seed: int = 0) -> Iterator[str]:
    """Hard texts, then random ones made of characters and of the vocabulary's own pieces."""
    rng = random.Random(seed)
    yield from ("", " ", "".join(HARD_LINES), *HARD_LINES)
    for _ in range(300):
        yield "".join(chr(rng.randrange(*rng.choice(_RANGES))) for _ in range(rng.randint(1, 40)))
    for _ in range(700):
        yield "".join(decode([rng.randrange(vocab_size)]) for _ in range(rng.randint(2, 12)))


def _library(spec: dict[str, Any]) -> Any:
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from tokenizers import Tokenizer as Library  # an extra, which reads the variable

    return Library.from_str(json.dumps(spec))


def _text(piece: str) -> str:
    return piece.replace(SPACE_MARK, " ")


def _byte_name(byte: int) -> str:
    return f"<0x{byte:02X}>"
