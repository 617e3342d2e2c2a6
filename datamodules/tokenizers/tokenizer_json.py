"""A `tokenizer.json` of Hugging Face without what changes a text before its tokens are looked up."""

from typing import Any

_LEFT_OUT = ("NFC", "NFD", "NFKC", "NFKD", "Precompiled", "Nmt", "Prepend", "Strip")
"""Normal forms of Unicode, a space before the text, and the decoder that takes that space away again."""


def without_text_changes(spec: dict[str, Any]) -> dict[str, Any]:
    """The tokenizer with that switched off, and dropout, truncation and padding too.

    Args:
        spec: The content of the file.

    Raises:
        ValueError: If it is not a tokenizer.
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


def _exact(component: Any) -> dict[str, Any] | None:
    """A normalizer, pre-tokenizer or decoder, or what is left of it."""
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


def with_start_token(spec: dict[str, Any], token: str, number: int) -> dict[str, Any]:
    """The tokenizer with this token, a special one, before every text and nothing else."""
    others = [added for added in spec["added_tokens"] if added["content"] != token]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = sorted([*others, {"id": number, "content": token, **flags}], key=lambda added: added["id"])
    start, text = {"SpecialToken": {"id": token, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}
    processor = {
        "type": "TemplateProcessing",
        "single": [start, text],
        "pair": [start, text, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {token: {"id": token, "ids": [number], "tokens": [token]}},
    }
    return {**spec, "added_tokens": added, "post_processor": processor}
