"""The configuration and the model that transformers opens, around llp's own decoder.

No module imports this one. `llp.export.modeling_file` joins it with the modules that it imports into one file.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from llp.decoder.block import DecoderSettings
from llp.decoder.decoder import Decoder
from llp.decoder.kv_cache import KVCache
from llp.export.layers import digest, geometry_of
from llp.scoring.windows import scoring_windows, window_start


class LLPConfig(PretrainedConfig):
    """What determines the model's logits, apart from its weights.

    Args:
        settings: Sizes and options of the decoder.
        patterns: The attention pattern of each layer: a class's name and its arguments.
        compress: Lengths of the map that shortens the history, if there is one.
        window_len: Length of the windows in which a text is scored and continued.
        stride: How many positions each of them scores.
        digest: Digest of all these, so that a change by hand is noticed.
        kwargs: Settings that every configuration of transformers has.
    """

    model_type = "llp"

    def __init__(
        self,
        settings: dict[str, Any] | None = None,
        patterns: list[dict[str, Any]] | None = None,
        compress: dict[str, int] | None = None,
        window_len: int = 0,
        stride: int = 0,
        digest: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.settings, self.patterns, self.compress = settings or {}, patterns or [], compress
        self.window_len, self.stride, self.digest = window_len, stride, digest
        self.vocab_size, self.hidden_size = self.settings.get("vocab_size"), self.settings.get("dim")
        self.num_attention_heads, self.num_hidden_layers = self.settings.get("n_heads"), len(self.patterns)


class LLPForCausalLM(PreTrainedModel, GenerationMixin):
    """A trained model of llp. There is no cache: each token is computed from its whole window.

    A text is scored in llp's own windows, so that each position has the logits with which `llp test` scores it.
    """

    config_class = LLPConfig
    base_model_prefix = ""
    _tied_weights_keys = {"decoder.head.weight": "decoder.embed.weight"}

    def __init__(self, config: LLPConfig) -> None:
        super().__init__(config)
        names = ("settings", "patterns", "compress", "window_len", "stride")
        if digest({name: getattr(config, name) for name in names}) != config.digest:
            changed = f"one of {', '.join(names)} in config.json was changed since the export"
            raise ValueError(f"{changed}: the weights were trained with other values; restore it, or export again")
        settings = DecoderSettings(**config.settings)
        geometry = geometry_of(config.patterns, settings.n_heads, config.compress, settings.share_key_value)
        self.decoder = Decoder(settings, geometry)
        self.post_init()

    @classmethod
    def from_pretrained(cls, *args: Any, output_loading_info: bool = False, **kwargs: Any) -> Any:
        """As in transformers, but a missing weight is an error instead of drawn at random."""
        loaded: Any = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        model, info = loaded
        lost = {name: sorted(map(str, value)) for name, value in info.items() if value}
        if lost:
            raise ValueError(f"model.safetensors does not hold the weights of this model: {lost}; export again")
        return (model, info) if output_loading_info else model

    def get_input_embeddings(self) -> Any:
        return self.decoder.embed

    def get_output_embeddings(self) -> Any:
        return self.decoder.head

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        return {"input_ids": input_ids, "attention_mask": attention_mask, "next_token_only": True}

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
        next_token_only: bool = False,
        **kwargs: Any,
    ) -> CausalLMOutput:
        """Logits of the token after each position, or after the last one alone.

        Args:
            input_ids: (B, N), texts from their start tokens on, without padding.
            attention_mask: (B, N) of ones.
            labels: (B, N), the same tokens for a loss in nats per token, or -100 where none counts.
            logits_to_keep: Return the logits of this many last positions; 0: of all N.
            next_token_only: Return the logits of the last position, as `llp generate` predicts from it.
            kwargs: Ignored, since there is no cache.

        Raises:
            ValueError: If the mask hides a position.
        """
        if attention_mask is not None and not bool(attention_mask.all()):
            reason = "attention_mask hides positions: padding would move all others in their windows"
            raise ValueError(f"{reason}; give texts of one length, or one text at a time")
        if next_token_only:
            return CausalLMOutput(logits=self._next(input_ids))
        logits = self._in_windows(input_ids, 0 if labels is not None else logits_to_keep)
        if labels is None:
            return CausalLMOutput(logits=logits)
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten().to(logits.device))
        return CausalLMOutput(loss=loss, logits=logits)

    def _in_windows(self, tokens: Tensor, n_last: int) -> Tensor:
        """Logits of each position in its scoring window: (B, N, vocab_size), or of the last `n_last`."""
        first = tokens.shape[1] - n_last if n_last else 0
        windows = scoring_windows(0, tokens.shape[1], self.config.window_len, self.config.stride)
        parts = [self._scored(tokens, *window[1:]) for window in windows if window.stop > first]
        return torch.cat(parts, dim=1)[:, -n_last:]

    def _scored(self, tokens: Tensor, start: int, stop: int, n_scored: int) -> Tensor:
        return self.decoder(tokens[:, start:stop])[:, -n_scored:]

    def _next(self, tokens: Tensor) -> Tensor:
        """Logits of the last position in its window once that is full: (B, 1, vocab_size).

        The first latent is where it is in the full window.
        """
        n, window_len, stride = tokens.shape[1], self.config.window_len, self.config.stride
        start, stop = window_start(n - 1, window_len, stride), ((n - 1) // stride + 1) * stride
        cache = KVCache(self.decoder.geometry, len(tokens), None)
        cache.clear((start, stop))
        return self.decoder.extend(tokens[:, start:], [cache], 1)
