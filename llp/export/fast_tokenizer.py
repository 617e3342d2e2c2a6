"""A model's tokenizer as a fast tokenizer of transformers, if that gives exactly the same tokens.

Each export tries it: it encodes texts on which tokenizers tend to differ with both.
"""

import json
import os
import random
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from datamodules.tokenizers import Bytes, HuggingFaceTokenizer, SentencePiece, Tokenizer
from datamodules.tokenizers.hugging_face import start_template
from datamodules.tokenizers.roundtrip import HARD_LINES, SPACE_MARK

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Library

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
    padding = None
    if isinstance(own, Bytes):
        vocab = {f"<0x{byte:02X}>": byte for byte in range(256)} | {"<s>": own.start_token}
        spec = _byte_fallback(vocab, [], {"<s>": True})
    elif isinstance(own, SentencePiece):
        spec, padding = _sentence_piece_spec(own)
    elif isinstance(own, HuggingFaceTokenizer):
        spec = json.loads(own.serialized())
    else:
        raise _NotExactError(f"{type(own).__name__} has no form that transformers reads")
    start = _opened(spec).id_to_token(start_token)
    assert start is not None
    lines = {"type": "Split", "pattern": {"Regex": _LINE_ENDS}, "behavior": "MergedWithPrevious", "invert": False}
    parts = [lines, spec["pre_tokenizer"]] if spec["pre_tokenizer"] else [lines]
    spec["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": parts}
    spec["post_processor"] = start_template(start, start_token)
    is_special = any(token["content"] == start and token["special"] for token in spec["added_tokens"])
    return spec, start if is_special else None, padding


def _sentence_piece_spec(own: SentencePiece) -> tuple[dict[str, Any], str | None]:
    from sentencepiece import sentencepiece_model_pb2  # its protobuf takes a while, and only this needs it

    proto: Any = sentencepiece_model_pb2
    model = proto.ModelProto.FromString(own.serialized())
    if model.trainer_spec.model_type != model.trainer_spec.BPE:
        raise _NotExactError("a unigram model breaks ties in ways that transformers does not; only BPE is exact there")
    texts = [piece.piece if piece.type == _BYTE else piece.piece.replace(SPACE_MARK, " ") for piece in model.pieces]
    kinds = [piece.type for piece in model.pieces]
    pieces = list(zip(texts, kinds, strict=True))
    added = {text: kind != _OWN_SYMBOL for text, kind in pieces if kind in (_UNKNOWN, _CONTROL, _OWN_SYMBOL)}
    scores = {text: model.pieces[number].score for number, (text, kind) in enumerate(pieces) if kind == _NORMAL}
    padding = next((text for text, kind in pieces if kind == _UNKNOWN), None)  # it is never produced
    return _byte_fallback({text: number for number, text in enumerate(texts)}, merges(scores), added), padding


def merges(scores: dict[str, float]) -> list[tuple[str, str]]:
    """The merges of a BPE model, the most likely piece first: each piece from any two others."""
    ordered = sorted(scores, key=lambda text: -scores[text])
    pairs = ((text[:place], text[place:]) for text in ordered for place in range(1, len(text)))
    return [(left, right) for left, right in pairs if left in scores and right in scores]


def _byte_fallback(vocab: dict[str, int], pairs: list[tuple[str, str]], added: dict[str, bool]) -> dict[str, Any]:
    """A BPE model that encodes unknown characters as bytes and changes nothing in a text.

    Args:
        vocab: The id of each token.
        pairs: The merges, in their order.
        added: Tokens that are looked up in the text first, and whether they are special.
    """
    from tokenizers import AddedToken, decoders, models  # an extra
    from tokenizers import Tokenizer as Library

    library = Library(models.BPE(vocab, pairs, byte_fallback=True))
    library.add_tokens([AddedToken(text, special=special, normalized=False) for text, special in added.items()])
    library.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    spec: dict[str, Any] = json.loads(library.to_str())
    return spec


def _try(own: Tokenizer, spec: dict[str, Any], start_token: int) -> int:
    """Encode and decode hard texts with both; returns how many."""
    fast = _opened(spec)
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


def _opened(spec: dict[str, Any]) -> "Library":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from tokenizers import Tokenizer as Library  # an extra, which reads the variable

    return Library.from_str(json.dumps(spec))
