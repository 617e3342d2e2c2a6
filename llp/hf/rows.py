"""The rows of a forward pass: an object that transformers creates once in place of a mask and passes to every layer."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from llp.decoder.kept_first import BlocksPlan, SegmentsPlan
from llp.errors import require

Document = tuple[slice, slice, slice]
"""A text, or the part of it in this pass: its row, its queries among those of the pass, and its keys in the row."""

Prepared = tuple[BlocksPlan | SegmentsPlan, tuple[Tensor, Tensor] | None]
"""The plan of an attention, and the cosines and sines that rotate queries for the kept tokens, or None."""


@dataclass(eq=False)
class Rows:
    """The rows of a forward pass."""

    n_before: int
    """Number of positions before the first query, which were read in earlier passes."""
    n: int
    """Number of all positions, including those that a cache has dropped."""
    is_cut: bool
    """Whether the cache reports that it has dropped keys."""
    attention_mask: Tensor | None
    """(B, n) booleans, False for padding."""
    dense_mask: Callable[[], Tensor | None]
    """The mask of transformers' own `sdpa`, for layers that stay dense."""
    sees: Callable[..., Tensor]
    """Transformers' own mask function: whether a query sees a key, given row and head."""
    plans: dict[Hashable, Prepared] = field(default_factory=dict)
    """Plans that the first layer computes and the others reuse."""
    _documents: list[Document] | None = None

    def documents(self, position_ids: Tensor | None, batch_size: int) -> list[Document]:
        """The documents of all rows, or an empty list if each row is one complete document.

        A document is a run of consecutive positions, so left padding is not a part of the text.
        """
        if self._documents is None:
            self._documents = self._find_documents(position_ids, batch_size)
        return self._documents

    def _find_documents(self, position_ids: Tensor | None, batch_size: int) -> list[Document]:
        n_queries = self.n - self.n_before
        if position_ids is None:  # the model does not pass them on; transformers' own mask separates the documents
            later, each = torch.arange(self.n_before + 1, self.n), torch.arange(batch_size).unsqueeze(1)
            joined = self.sees(each, 0, later, later - 1).cpu().expand(batch_size, -1)
            positions = torch.full((batch_size, n_queries), self.n_before)
        else:
            positions = position_ids.reshape(-1, n_queries).cpu()  # (1 or B, Q)
            joined = positions.diff() == 1
        first_keys = (self.n_before - positions[:, 0]).clamp(min=0) if self.n_before else torch.zeros(len(positions))
        if joined.all() and not first_keys.any():
            self._check_padding(slice(None), slice(0, self.n))
            return []
        documents = []
        for row in range(batch_size):
            number = min(row, len(positions) - 1)
            starts: list[int] = [0, *((~joined[number]).nonzero().flatten() + 1).tolist()]
            for start, stop in zip(starts, [*starts[1:], n_queries], strict=True):
                first_key = self.n_before + start if start else int(first_keys[number])
                keys = slice(first_key, self.n_before + stop)
                self._check_padding(slice(row, row + 1), keys)
                documents.append((slice(row, row + 1), slice(start, stop), keys))
        return documents

    def _check_padding(self, rows: slice, keys: slice) -> None:
        """Raise a `SettingError` if padding comes before text; no query sees padding after its text."""
        if self.attention_mask is None:
            return
        real = self.attention_mask[rows, keys]
        remedy = "left padding is numbered as a part of the text; pad on the right, or give position_ids"
        require(not (real[:, 1:] & ~real[:, :-1]).any(), "attention_mask", "0 before 1", remedy)


def make_rows(dense_mask: Callable[..., Tensor | None], **arguments: Any) -> Rows:
    """The mask function. Transformers 5 passes the number and offset of the queries, 4.57 their positions."""
    positions = arguments.get("cache_position")
    if positions is None:
        n_before, n_queries = int(arguments["q_offset"]), arguments["q_length"]
    else:
        n_before, n_queries = int(positions[0]), len(positions)
    is_cut, real = arguments["kv_offset"] > 0, arguments["attention_mask"]
    dense = partial(dense_mask, **arguments)
    return Rows(n_before, n_before + n_queries, is_cut, real, dense, arguments["mask_function"])
