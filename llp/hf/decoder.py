"""A causal model of transformers with the interface of a `Decoder`."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from llp.decoder.block import last_positions
from llp.decoder.decoder import TextDecoder, at_positions
from llp.decoder.geometry import Geometry
from llp.decoder.kv_cache import KVCache
from llp.decoder.loss import Losses, linear_cross_entropy
from llp.errors import require
from llp.hf.cache import LocalCache
from llp.hf.layer import layer_attentions


class PretrainedCache(KVCache):
    """The cache of a model of transformers; `hidden` is the cache of its layers."""

    def __init__(self, model: Any, geometry: Geometry, batch_size: int, window: tuple[int, int] | None) -> None:
        super().__init__(geometry, batch_size, window)
        self.model = model
        self.hidden: Any = None

    def clear(self, span: tuple[int, int]) -> None:
        self.span = span
        is_dense = not layer_attentions(self.model)
        self.hidden = DynamicCache(config=self.model.config) if is_dense else LocalCache(self.model)

    def select(self, rows: Sequence[int]) -> None:
        super().select(rows)
        if self.hidden is not None:
            self.hidden.batch_select_indices(torch.tensor(rows))


class PretrainedDecoder(TextDecoder):
    """A causal model of transformers whose logits are a linear map of its last hidden states.

    Args:
        model: A `PreTrainedModel` for causal language modelling, after `set_attention`.
        geometry: The attention patterns of its layers.
        logit_scale: Factor of the head's output; see `logit_scale`.
    """

    has_float64 = False  # transformers computes cosines and sines of positions in float32

    def __init__(self, model: Any, geometry: Geometry, logit_scale: float) -> None:
        super().__init__()
        self.model, self.geometry, self.logit_scale = model, geometry, logit_scale

    def _states(self, tokens: Tensor, positions: Tensor | None = None, **options: Any) -> Tensor:
        """The last hidden states, (B, N, dim) or (B, S, dim) at the positions, scaled for `_head`."""
        states: Tensor = self.model.base_model(input_ids=tokens, **options).last_hidden_state
        if positions is not None:
            states = at_positions(states, positions, tokens.shape[1])
        return states if self.logit_scale == 1 else states * self.logit_scale

    def _head(self) -> tuple[Tensor, Tensor | None]:
        """Weight and bias that map the scaled states to the logits."""
        head: nn.Linear = self.model.get_output_embeddings()
        return head.weight, None if head.bias is None else head.bias * self.logit_scale

    def forward(self, tokens: Tensor, positions: Tensor | None = None) -> Tensor:
        return nn.functional.linear(self._states(tokens, positions, use_cache=False), *self._head())

    def loss(self, tokens: Tensor, targets: Tensor, positions: Tensor | None = None) -> Losses:
        states = self._states(tokens, positions, use_cache=False)
        return linear_cross_entropy(last_positions(states, targets.shape[1]), *self._head(), targets)

    def new_cache(self, batch_size: int, window: tuple[int, int] | None) -> PretrainedCache:
        return PretrainedCache(self.model, self.geometry, batch_size, window)

    def extend(self, tokens: Tensor, caches: Sequence[KVCache], n_logits: int | None = None) -> Tensor:
        logits, n_last = [], tokens.shape[1] if n_logits is None else n_logits
        for cache, own in zip(caches, tokens.split([cache.batch_size for cache in caches]), strict=True):
            assert isinstance(cache, PretrainedCache)
            states = self._states(own, use_cache=True, **{cache_name(self.model): cache.hidden})
            logits.append(nn.functional.linear(last_positions(states, n_last), *self._head()))
        return torch.cat(logits)

    def flops(self, n: int, n_scored: int | None = None, n_last: int | None = None) -> int:
        config, n_heads = self.model.config, self.geometry.n_heads
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // n_heads
        linear = [module for module in self.model.base_model.modules() if isinstance(module, nn.Linear)]
        of_weights = 2 * n * sum(module.weight.numel() for module in linear)
        of_pairs = round(4 * n_heads * head_dim * self.geometry.pair_count(n))
        of_head = 2 * (n if n_scored is None else n_scored) * self._head()[0].numel()
        return of_weights + of_pairs + of_head


def cache_name(model: Any) -> str:
    """The name of the model's argument for the cache, which depends on the version of transformers."""
    return "cache" if "cache" in inspect.signature(model.base_model.forward).parameters else "past_key_values"


@torch.no_grad()
def logit_scale(model: Any) -> float:
    """The factor between the head's output and the logits of a model in evaluation mode, 1 for most families.

    Raises:
        SettingError: If the logits are not proportional to the head's output, for example because of a soft cap.
    """
    tokens = torch.arange(8, device=model.device).unsqueeze(0)
    logits = model(input_ids=tokens, use_cache=False).logits.double()
    states = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
    plain = model.get_output_embeddings()(states).double()
    scale = ((logits * plain).sum() / (plain * plain).sum()).item()
    error = ((logits - scale * plain).abs().max() / logits.abs().max()).item()
    remedy = "its logits are not a linear map of its last hidden states (a soft cap?), as the loss requires"
    require(error < 0.01, "model.init_args.path", type(model).__name__, remedy)
    return 1.0 if abs(scale - 1) < 1e-3 else scale
