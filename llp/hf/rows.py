"""What a forward pass is about: stands in the mask's place, made once and handed to every layer."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from llp.errors import SettingError


@dataclass(frozen=True)
class Document:
    """A text, or what a pass has of it: queries `start` .. `stop` - 1 of the pass, of rows `first_row` .. `last_row`."""

    rows: slice
    start: int
    stop: int
    first_key: int
    """Where the document begins, counted from the start of the row."""


@dataclass(eq=False)
class Rows:
    """The rows of a forward pass."""

    n_before: int
    """Positions before the first query, read in earlier passes."""
    n: int
    """Positions in all, with those that a cache has dropped."""
    is_cut: bool
    """Whether the cache says that it has dropped keys."""
    attention_mask: Tensor | None
    """(B, n) booleans, False for padding."""
    dense_mask: Callable[[], Tensor | None]
    """The mask of transformers' own `sdpa`, for layers that stay dense."""
    plans: dict[object, object] = field(default_factory=dict)
    """What layers compute once for all of them."""
    _documents: list[Document] | None = None

    def documents(self, position_ids: Tensor | None, batch_size: int) -> list[Document]:
        """The documents of all rows; one that spans all rows if each row is one document from its first position on.

        Positions that go up by one are one document. Padding before a text is then a document of its own.

        Raises:
            SettingError: If padding before a text is numbered as a part of it.
        """
        if self._documents is None:
            self._documents = self._find_documents(position_ids, batch_size)
        return self._documents

    def _find_documents(self, position_ids: Tensor | None, batch_size: int) -> list[Document]:
        n_queries = self.n - self.n_before
        whole = [Document(slice(0, batch_size), 0, n_queries, 0)]
        if position_ids is None:
            position_ids = torch.arange(self.n_before, self.n).unsqueeze(0)
        positions = position_ids.reshape(-1, n_queries).cpu()  # (1 or B, Q)
        joined = positions[:, 1:] == positions[:, :-1] + 1
        starts = (self.n_before - positions[:, 0]).clamp(min=0)
        if joined.all() and not starts.any():
            self._check_padding(whole)
            return whole
        documents = []
        for row in range(batch_size):
            number = min(row, len(positions) - 1)
            cuts = [0, *((~joined[number]).nonzero().flatten() + 1).tolist(), n_queries]
            for start, stop in zip(cuts, cuts[1:], strict=False):
                first_key = self.n_before + start if start else int(starts[number]) if self.n_before else 0
                documents.append(Document(slice(row, row + 1), start, stop, first_key))
        self._check_padding(documents)
        return documents

    def _check_padding(self, documents: list[Document]) -> None:
        if self.attention_mask is None:
            return
        real = self.attention_mask.cpu()
        for document in documents:
            own = real[document.rows, document.first_key : self.n_before + document.stop]
            if (own[:, 1:] & ~own[:, :-1]).any():
                remedy = "padding before a text must not be numbered with it: pad right, or give position_ids"
                raise SettingError("attention_mask", "padded left", remedy)


def make_rows(
    *,
    kv_length: int,
    kv_offset: int = 0,
    q_length: int = 0,
    q_offset: int | Tensor = 0,
    cache_position: Tensor | None = None,
    attention_mask: Tensor | None = None,
    dense_mask: Callable[..., Tensor | None],
    **others: object,
) -> Rows:
    """The mask function: transformers 5 gives the queries' number and offset, 4.57 their positions in the cache."""
    arguments = {"kv_length": kv_length, "kv_offset": kv_offset, "attention_mask": attention_mask, **others}
    if cache_position is None:
        arguments |= {"q_length": q_length, "q_offset": q_offset}
    else:
        arguments |= {"cache_position": cache_position}
        q_length, q_offset = len(cache_position), int(cache_position[0])
    n_before = int(q_offset)
    return Rows(n_before, n_before + q_length, kv_offset > 0, attention_mask, lambda: dense_mask(**arguments))
