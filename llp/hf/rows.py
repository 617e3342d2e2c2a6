"""The rows of a forward pass: an object that transformers creates once in place of a mask and passes to every layer."""

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from llp.decoder.kept_first import BlocksPlan, SegmentsPlan
from llp.errors import require

Document = tuple[slice, slice, slice]
"""A text, or the part of it in this pass: its row, its queries among those of the pass, and its keys in the row."""

Prepared = tuple[BlocksPlan | SegmentsPlan, tuple[Tensor, Tensor] | None]
"""The plan of an attention, and the cosines and sines that rotate queries for the kept tokens, or None."""


class Rows:
    """The rows of a forward pass.

    Args:
        arguments: Those with which transformers calls a mask function.

    Attributes:
        n_before: Number of positions before the first query, which were read in earlier passes.
        n: Number of all positions, including those that a cache has dropped.
        documents: What `find_documents` returned in the first layer; None before that.
        plans: Plans that the first layer computes and the others reuse.
    """

    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments
        positions = arguments.get("cache_position")  # of the queries; transformers 5 passes their offset and number
        self.n_before = int(arguments["q_offset"] if positions is None else positions[0])
        self.n = self.n_before + (arguments["q_length"] if positions is None else len(positions))
        self.documents: list[Document] | None = None
        self.plans: dict[Hashable, Prepared] = {}

    def find_documents(self, position_ids: Tensor | None, batch_size: int) -> list[Document]:
        """The documents of all rows, or an empty list if each row is one complete document.

        A document is a run of consecutive positions, so left padding is not a part of the text.
        """
        n_queries = self.n - self.n_before
        if position_ids is None:  # the model does not pass them on; transformers' own mask separates the documents
            later, each = torch.arange(self.n_before + 1, self.n), torch.arange(batch_size).unsqueeze(1)
            joined = self.arguments["mask_function"](each, 0, later, later - 1).cpu().expand(batch_size, -1)
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
        if self.arguments["attention_mask"] is None:
            return
        real = self.arguments["attention_mask"][rows, keys]  # (B, n) booleans, False for padding
        remedy = "left padding is numbered as a part of the text; pad on the right, or give position_ids"
        require(not (real[:, 1:] & ~real[:, :-1]).any(), "attention_mask", "0 before 1", remedy)
