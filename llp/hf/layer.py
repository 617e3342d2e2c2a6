"""The attention function that transformers calls in each layer, and what is set on the layers that take a pattern."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llp.decoder.patterns import AttentionPattern
from llp.errors import SettingError, require
from llp.hf.parts import attend_in_blocks, attend_in_segments, make_plan
from llp.hf.rotation import Rotation
from llp.hf.rows import Document, Rows


@dataclass(frozen=True, eq=False)
class LayerAttention:
    """What a layer attends to."""

    pattern: AttentionPattern
    keep_first: int
    """How many of a text's first tokens stay in sight."""
    rotation: Rotation | None
    """How their keys are moved to right before what the query sees; None if they stay where they are."""
    n_heads: int

    def first_local(self, n: int) -> int:
        """The first key that queries from position `n` on see, apart from the kept ones; 0 if the two overlap."""
        first = self.pattern.first_kept(self.n_heads, n)
        return first if first >= self.keep_first else 0

    def n_kept(self, n: int) -> int:
        """How many keys queries from position `n` on can see among `n` positions before them."""
        first = self.first_local(n)
        return n - first + (self.keep_first if first else 0)


def attend(
    settings: LayerAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: Rows,
    scaling: float | None,
    position_ids: Tensor | None,
) -> Tensor:
    """Attention of a layer: query (B, H, Q, D), key and value (B, H / groups, N, D) -> (B, H, Q, D)."""
    n_kept_before = settings.n_kept(rows.n_before)
    n_given, n_queries = key.shape[2], query.shape[2]
    is_whole = n_given == rows.n
    if rows.is_cut or not (is_whole or n_given == n_kept_before + n_queries):
        remedy = "the cache drops keys that the pattern sees (a sliding or static cache); use llp.hf.LocalCache(model)"
        raise SettingError("past_key_values", f"{n_given} keys of {rows.n} positions", remedy)
    if key.shape[1] < query.shape[1]:
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    documents = rows.documents(position_ids, len(query))
    if len(documents) == 1:
        first = settings.first_local(rows.n_before)
        return _attend_document(settings, query, key, value, rows.n_before, rows.n, first, scale, rows)
    require(is_whole, "past_key_values", "LocalCache", "rows with padding on the left need a cache that grows")
    output = torch.empty_like(query)
    parts = [_attend_one(settings, query, key, value, document, scale, rows) for document in documents]
    for document, part in zip(documents, parts, strict=True):
        output[document.rows, :, document.start : document.stop] = part
    return output


def _attend_one(
    settings: LayerAttention, query: Tensor, key: Tensor, value: Tensor, document: Document, scale: float, rows: Rows
) -> Tensor:
    queries, keys = slice(document.start, document.stop), slice(document.first_key, rows.n_before + document.stop)
    query, key, value = query[document.rows, :, queries], key[document.rows, :, keys], value[document.rows, :, keys]
    n = key.shape[2]
    n_before = n - query.shape[2]
    return _attend_document(settings, query, key, value, n_before, n, settings.first_local(n_before), scale, rows)


def _attend_document(
    settings: LayerAttention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    n_before: int,
    n: int,
    first: int,
    scale: float,
    rows: Rows,
) -> Tensor:
    """Queries at n_before .. n - 1 of one text; keys of all n positions, or of the first ones and `first` .. n - 1."""
    n_first = min(settings.keep_first, n)
    kept_key, kept_value = key[:, :, :n_first], value[:, :, :n_first]
    n_dropped = key.shape[2] - (n - first)  # before the pattern's keys
    local = query, key[:, :, n_dropped:], value[:, :, n_dropped:]
    if n_first == 0:
        return settings.pattern.attend(query * (scale * query.shape[-1] ** 0.5), *local[1:])
    name = settings, n_before, n, first
    if name not in rows.plans:
        plan = make_plan(settings.pattern, n_first, query.shape[1], n_before, n, first, query)
        turn = settings.rotation.cos_sin(-plan.turns) if settings.rotation else None  # (1 or H, Q, R)
        rows.plans[name] = plan, turn
    plan, turn = rows.plans[name]
    turned = query if turn is None else settings.rotation.turn(query, *turn)
    kept = turned, kept_key, kept_value
    if plan.segment_len is None:
        return attend_in_blocks(plan, local, kept, scale)
    return attend_in_segments(plan, settings.pattern.look_back, first // plan.segment_len, local, kept, scale)


def layer_attentions(model: nn.Module) -> dict[int, LayerAttention]:
    """What was set on the layers of a model, by their number in a cache.

    Raises:
        SettingError: If nothing was.
    """
    found = {module.layer_idx: module.llp_attention for module in model.modules() if hasattr(module, "llp_attention")}
    require(bool(found), "model", type(model).__name__, "call llp.hf.set_attention(model, pattern) first")
    return found
