"""A key-value cache of bounded size: a layer keeps the first tokens and those that its pattern can still see."""

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from llp.errors import SettingError, require
from llp.hf.layer import LayerAttention, layer_attentions


class LocalLayer(DynamicLayer):
    """Keys and values of one layer: those of the first tokens, then those from `LayerAttention.first_local` on."""

    def __init__(self, attention: LayerAttention) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.attention = attention
        self.n_seen = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Add n positions, (B, H, n, D), and return the keys and values that their queries can see."""
        if self.keys is None or self.values is None:
            self.keys, self.values = key_states[:, :, :0], value_states[:, :, :0]
            self.device, self.is_initialized = key_states.device, True
        key, value = torch.cat((self.keys, key_states), dim=2), torch.cat((self.values, value_states), dim=2)
        self.n_seen += key_states.shape[2]
        n_dropped = key.shape[2] - self.attention.n_kept(self.n_seen)
        self.keys, self.values = self._without(n_dropped, key), self._without(n_dropped, value)
        return key, value

    def _without(self, n_dropped: int, x: Tensor) -> Tensor:
        """`x` without the `n_dropped` positions after the first tokens, which no later query sees."""
        if n_dropped == 0:
            return x
        n_first = self.attention.keep_first
        return torch.cat((x[:, :, :n_first], x[:, :, n_first + n_dropped :]), dim=2)

    def get_seq_length(self, *args: object) -> int:
        """Number of positions read so far."""
        return self.n_seen

    def get_mask_sizes(self, query_length: int | Tensor) -> tuple[int, int]:
        """Number of positions including the next queries and those dropped, and an offset of 0.

        Masks refer to positions in the text. Transformers 4.57 passes positions instead of a length.
        """
        n_queries = len(query_length) if isinstance(query_length, Tensor) else query_length
        return self.n_seen + n_queries, 0

    def crop(self, *args: object) -> None:
        """Raise a `SettingError`, because dropped positions can't be restored."""
        raise SettingError("cache", "LocalCache", "it can't be cropped; use a DynamicCache")

    def reset(self) -> None:
        """Clear the cache."""
        self.keys = self.values = None
        self.is_initialized, self.n_seen = False, 0


class LocalCache(Cache):
    """A cache for a model after `set_attention`, whose memory does not grow with the length of the text.

    Dense layers keep all positions. `generate` creates such a cache by itself.

    Args:
        model: A model whose attention was set with `set_attention`.

    Raises:
        SettingError: If the attention of the model was not set.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        attentions = layer_attentions(model)
        require(bool(attentions), "model", type(model).__name__, "call llp.hf.set_attention(model, pattern) first")
        config = model.config.get_text_config(decoder=True)
        stock = DynamicCache(config=config).layers  # empty if all layers are of the same kind
        layers = [*stock, *(DynamicLayer() for _ in range(config.num_hidden_layers - len(stock)))]
        for number, layer in enumerate(layers):
            if number in attentions:
                layers[number] = LocalLayer(attentions[number])
            elif getattr(layer, "is_sliding", False):  # a sliding layer drops keys and would need another mask
                layers[number] = DynamicLayer()
        super().__init__(layers=layers)
