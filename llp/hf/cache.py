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
        key, value = super().update(key_states, value_states)
        self.n_seen += key_states.shape[2]
        n_first, n_dropped = self.attention.keep_first, key.shape[2] - self.attention.n_kept(self.n_seen)
        if n_dropped > 0:  # the positions after the first tokens that no later query sees
            kept = [torch.cat((x[:, :, :n_first], x[:, :, n_first + n_dropped :]), dim=2) for x in (key, value)]
            self.keys, self.values = kept
        return key, value

    def get_seq_length(self, *args: object) -> int:
        """Number of positions read so far, so that masks refer to positions in the text."""
        return self.n_seen

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
