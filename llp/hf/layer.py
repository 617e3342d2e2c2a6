"""The attention of a layer that uses a pattern, and the settings that `set_attention` attaches to the layer."""

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from llp.decoder.kept_first import make_plan
from llp.decoder.kernels.fused import Triple
from llp.decoder.patterns import AttentionPattern
from llp.decoder.rotary import Rotation
from llp.errors import require
from llp.hf.rows import Prepared, Rows


@dataclass(frozen=True, eq=False)
class LayerAttention:
    """The attention settings of a layer."""

    pattern: AttentionPattern
    keep_first: int
    """Number of first tokens of a text that stay in sight."""
    rotation: Rotation | None
    """The rotary embedding with which their keys are moved to right before what a query sees; None to leave them."""
    n_heads: int

    def first_local(self, n: int) -> int:
        """The first key, apart from the kept ones, that queries at position `n` or later see; 0 if the two overlap."""
        first = self.pattern.first_kept(self.n_heads, n)
        return first if first >= self.keep_first else 0

    def n_kept(self, n: int) -> int:
        """Number of keys among the first `n` positions that queries at position `n` or later can see."""
        first = self.first_local(n)
        return n - first + (self.keep_first if first else 0)


def attend(settings: LayerAttention, inputs: Triple, rows: Rows, scale: float, position_ids: Tensor | None) -> Tensor:
    """Attention of a layer: query (B, H, Q, D), key and value (B, H / groups, N, D) -> (B, H, Q, D).

    Keys are those of all positions, or those that a `LocalCache` keeps.

    Raises:
        SettingError: If a cache has dropped keys that are needed, or if padding can't be distinguished from text.
    """
    query, key, value = inputs
    n_given, n_queries = key.shape[2], query.shape[2]
    is_whole = n_given == rows.n
    is_local = n_given == settings.n_kept(rows.n_before) + n_queries
    remedy = "the cache has dropped keys that the pattern sees (is it sliding or static?); use llp.hf.LocalCache(model)"
    require(not rows.is_cut and (is_whole or is_local), "cache", f"{n_given} keys of {rows.n} positions", remedy)
    if key.shape[1] < query.shape[1]:
        key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    documents = rows.documents(position_ids, len(query))
    if not documents:
        return _attend_text(settings, (query, key, value), rows.n_before, scale, rows.plans)
    require(is_whole, "cache", "LocalCache", "rows with several texts, or with left padding, need a DynamicCache")
    output = torch.empty_like(query)
    for row, queries, keys in documents:
        text = query[row, :, queries], key[row, :, keys], value[row, :, keys]
        n_before = text[1].shape[2] - text[0].shape[2]
        output[row, :, queries] = _attend_text(settings, text, n_before, scale, rows.plans)
    return output


def _attend_text(
    settings: LayerAttention, inputs: Triple, n_before: int, scale: float, plans: dict[Hashable, Prepared]
) -> Tensor:
    """Attention within one text, with queries from position `n_before` on, over all keys or those kept in a cache."""
    query, key, value = inputs
    n, first = n_before + query.shape[2], settings.first_local(n_before)
    n_dropped = key.shape[2] - (n - first)  # keys before the pattern's own
    local = query, key[:, :, n_dropped:], value[:, :, n_dropped:]
    n_kept = min(settings.keep_first, n)
    if n_kept == 0:
        return settings.pattern.attend(query * (scale * query.shape[-1] ** 0.5), *local[1:])
    if (settings, n_before, n) not in plans:
        plan = make_plan(settings.pattern, n_kept, n_before, n, first, query)
        turn = settings.rotation.cos_sin(-plan.turns) if settings.rotation else None
        plans[settings, n_before, n] = plan, turn
    plan, turn = plans[settings, n_before, n]
    turned = settings.rotation.turn(query, *turn) if settings.rotation and turn else query
    kept = turned, key[:, :, :n_kept], value[:, :, :n_kept]
    return plan.attend(local, kept, scale)


def layer_attentions(model: nn.Module) -> dict[int, LayerAttention]:
    """The settings of the layers of a model that use a pattern, by the layer's index in a cache."""
    attributes = [module.__dict__ for module in model.modules()]
    return {own["layer_idx"]: own["llp_attention"] for own in attributes if "llp_attention" in own}
