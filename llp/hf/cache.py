"""A key-value cache that does not grow: a layer keeps the first tokens and what its pattern can still see."""

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from llp.errors import SettingError, require
from llp.hf.layer import LayerAttention, layer_attentions


class LocalLayer(DynamicLayer):
    """Keys and values of a layer: those of the first tokens, then those from `LayerAttention.first_local` on."""

    def __init__(self, attention: LayerAttention) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.attention = attention
        self.n_seen = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Add n positions (B, H, n, D); returns the keys and values that their queries can see."""
        if self.keys is None or self.values is None:
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
            self.device, self.is_initialized = key_states.device, True
        key, value = torch.cat((self.keys, key_states), dim=2), torch.cat((self.values, value_states), dim=2)
        self.n_seen += key_states.shape[2]
        n_dropped = key.shape[2] - self.attention.n_kept(self.n_seen)
        self.keys, self.values = self._without(n_dropped, key), self._without(n_dropped, value)
        return key, value

    def _without(self, n_dropped: int, x: Tensor) -> Tensor:
        """Without the positions after the first tokens that no later query sees."""
        if n_dropped == 0:
            return x
        n_first = self.attention.keep_first
        return torch.cat((x[:, :, :n_first], x[:, :, n_first + n_dropped :]), dim=2)

    def get_seq_length(self, *args: object) -> int:
        """How many positions have been read."""
        return self.n_seen

    def get_mask_sizes(self, query_length: int | Tensor) -> tuple[int, int]:
        """Positions with the next queries, none of them dropped: masks are by position. 4.57 gives the positions."""
        n_queries = len(query_length) if isinstance(query_length, Tensor) else query_length
        return self.n_seen + n_queries, 0

    def crop(self, *args: object) -> None:
        """Raise a `SettingError`: what was dropped does not come back."""
        raise SettingError("cache", "LocalCache", "it can't take tokens back; use a DynamicCache")

    def reset(self) -> None:
        """Forget the text."""
        self.keys = self.values = None
        self.is_initialized, self.n_seen = False, 0


class LocalCache(Cache):
    """The cache of a model whose attention was set: memory stays the same however long the text.

    Layers that stay dense keep everything. `generate` makes one by itself; `set_attention` comes first.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        attentions = layer_attentions(model)
        require(bool(attentions), "model", type(model).__name__, "call llp.hf.set_attention(model, pattern) first")
        config = model.config.get_text_config(decoder=True)
        stock = DynamicCache(config=config).layers  # none where all layers are alike
        layers = [*stock, *(DynamicLayer() for _ in range(config.num_hidden_layers - len(stock)))]
        for number, layer in enumerate(layers):
            if number in attentions:
                layers[number] = LocalLayer(attentions[number])
            elif getattr(layer, "is_sliding", False):  # its shorter list of keys would need another mask
                layers[number] = DynamicLayer()
        super().__init__(layers=layers)
