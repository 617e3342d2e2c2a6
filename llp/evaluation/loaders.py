"""What an evaluation asks of a split's loader and data; `datamodules` has the classes that answer."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from llp.scoring.metric import Document
from llp.scoring.windows import ScoringWindow, WindowShape
from llp.text_model import Tokenizer


class TokenStream(Protocol):
    """A split as one stream of tokens."""

    @property
    def tokens(self) -> np.ndarray: ...
    @property
    def documents(self) -> Sequence[Document]: ...


class ScoringLoader(Protocol):
    """A loader of scoring windows."""

    split: str
    protocol: dict[str, Any]
    """How the split is scored, in a form that JSON can hold."""
    batches: list[list[ScoringWindow]]
    """This process's windows, as they are computed."""

    @property
    def window_shapes(self) -> Mapping[WindowShape, int]:
        """Number of windows of each shape, over all ranks."""


class TextLoader(ScoringLoader, Protocol):
    """A loader of scoring windows over a text."""

    @property
    def file(self) -> TokenStream: ...
    @property
    def documents(self) -> Sequence[Document]: ...

    def unigram_nats(self) -> list[float]:
        """Loss in nats of each document under a unigram model of the training split."""

    def positions(self, batch: int) -> list[int]:
        """Index of the first scored token of each window of a batch, among all scored tokens of the split."""

    def scored_tokens(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Document, position in the document and id of the scored tokens with these indices."""


class TextData(Protocol):
    """A data module with text."""

    name: str
    window_len: int
    batch_size: int
    scoring_window_len: int | None
    scoring_stride: int | None

    @property
    def tokenizer(self) -> Tokenizer: ...

    def checked_file(self, split: str) -> TokenStream:
        """The tokens of a split, compared with their digest."""
