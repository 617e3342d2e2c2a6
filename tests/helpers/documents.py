"""A document's size, as scores know it."""

from dataclasses import dataclass


@dataclass
class Document:
    name: str
    tokens: int
    words: int
    bytes: int
    plain_words: int = 7
