"""The configuration and the model that transformers opens, around llp's own decoder.

No module imports this one. `llp.export.modeling_file` joins it with the modules that it imports into one file.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from llp.decoder.block import DecoderSettings
from llp.decoder.decoder import Decoder
from llp.decoder.extend import extend
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


@dataclass
class TextCache:
    """The keys and values of texts that are generated, and the tokens (B, n) that they are of.

    It doesn't rely on being told what became of the texts, in beam search for one: it compares their tokens.
    """

    kv_cache: KVCache
    tokens: Tensor

    def follows(self, tokens: Tensor) -> bool:
        """Whether texts (B, N) go on where cached ones end; the cache then has the rows of these texts."""
        n = self.tokens.shape[1]
        if tokens.shape[1] <= n:
            return False
        begun = tokens[:, :n]
        if not torch.equal(begun, self.tokens):
            same = (begun[:, None] == self.tokens).all(dim=2)  # (B, cached rows)
            if not bool(same.any(dim=1).all()):
                return False
            self.kv_cache.select(same.int().argmax(dim=1).tolist())
        return True


@dataclass
class LLPOutput(CausalLMOutput):
    """What the model returns; while a text is generated, also the keys and values that its next tokens can see."""

    kv_cache: TextCache | None = None


class LLPForCausalLM(PreTrainedModel, GenerationMixin):
    """A trained model of llp.

    A text is scored in llp's own windows, so that each position has the logits with which `llp test` scores it, and
    `generate` predicts each token as `llp generate` does.
    """

    config_class = LLPConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _is_stateful = True  # no assisted generation, which asks for the logits of several positions at once
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
        self.gradient_checkpointing = False  # set by `gradient_checkpointing_enable`
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

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> Any:
        """The embeddings as they are; another number of tokens is refused."""
        if new_num_tokens not in (None, self.config.vocab_size):
            size = self.config.vocab_size
            raise ValueError(
                f"the vocabulary has {size} tokens and can't be resized to {new_num_tokens}: train another"
            )
        return self.get_input_embeddings()

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        return False  # it has no windows; the model brings its own

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        kv_cache: TextCache | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        caches = {"kv_cache": kv_cache, "use_cache": use_cache}
        return {"input_ids": input_ids, "attention_mask": attention_mask, **caches, "next_token_only": True}

    def _update_model_kwargs_for_generation(
        self, outputs: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> dict[str, Any]:
        updated: dict[str, Any] = super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)
        return {**updated, "kv_cache": outputs.kv_cache}

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        logits_to_keep: int = 0,
        num_items_in_batch: Tensor | int | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        next_token_only: bool = False,
        kv_cache: TextCache | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> LLPOutput | tuple[Any, ...]:
        """Logits of the token after each position, or after the last one alone.

        Args:
            input_ids: (B, N), texts from their start tokens on, without padding.
            attention_mask: (B, N) of ones.
            labels: (B, N), the same tokens for a loss in nats per token, or -100 where none counts.
            logits_to_keep: Return the logits of this many last positions; 0: of all N.
            num_items_in_batch: Divides the summed loss, for a mean over several batches whose gradients are
                accumulated; by default the loss is the mean of this batch.
            output_hidden_states: Whether to return the embeddings and what leaves each layer, the last one normalized:
                (B, N, dim) each, of every position in the window that scores it.
            return_dict: Whether to return an object with names, not a tuple.
            next_token_only: Return the logits of the last position, as `llp generate` predicts from it.
            kv_cache: Of the beginning of these texts, with `next_token_only`; it takes the others in.
            use_cache: Whether to make a cache where there is none.
            kwargs: None or False: nothing else is supported.

        Raises:
            ValueError: If the mask hides a position, or an argument is not supported.
        """
        if unknown := [name for name, value in kwargs.items() if value is not None and value is not False]:
            raise ValueError(f"{', '.join(unknown)}: not supported by this model; leave it out")
        if attention_mask is not None and not bool(attention_mask.all()):
            reason = "attention_mask hides positions: padding would move all others in their windows"
            raise ValueError(f"{reason}; give texts of one length, or one text at a time")
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if return_dict is None:
            return_dict = self.config.return_dict
        if next_token_only:
            if output_hidden_states:
                raise ValueError(
                    "output_hidden_states: not while a text is generated; call the model with the whole text"
                )
            output = self._next(input_ids, kv_cache, use_cache)
        else:
            n_last = 0 if labels is not None or output_hidden_states else logits_to_keep
            logits, states = self._in_windows(input_ids, n_last, bool(output_hidden_states))
            loss = None if labels is None else self._loss(logits, labels, num_items_in_batch)
            output = LLPOutput(loss=loss, logits=logits, hidden_states=states)
        return output if return_dict else output.to_tuple()

    @staticmethod
    def _loss(logits: Tensor, labels: Tensor, n_items: Tensor | int | None) -> Tensor:
        """The loss in nats of the labels after the first: their mean, or their sum divided by the number of items."""
        logits, labels = logits[:, :-1].flatten(0, 1).float(), labels[:, 1:].flatten().to(logits.device)
        if n_items is None:
            return F.cross_entropy(logits, labels)
        return F.cross_entropy(logits, labels, reduction="sum") / torch.as_tensor(n_items, device=logits.device)

    def _in_windows(self, tokens: Tensor, n_last: int, with_states: bool) -> tuple[Tensor, tuple[Tensor, ...] | None]:
        """Logits of each position in its scoring window, (B, N, vocab_size), or of the last `n_last`; their states."""
        self.decoder.activation_checkpointing = self.gradient_checkpointing
        first = tokens.shape[1] - n_last if n_last else 0
        windows = scoring_windows(0, tokens.shape[1], self.config.window_len, self.config.stride)
        scored = [self._scored(tokens, *window[1:], with_states) for window in windows if window.stop > first]
        logits, *states = (torch.cat(parts, dim=1)[:, -n_last:] for parts in zip(*scored, strict=True))
        return logits, tuple(states) if with_states else None

    def _scored(self, tokens: Tensor, start: int, stop: int, n_scored: int, with_states: bool) -> list[Tensor]:
        """Logits of the last positions of a window, and their states."""
        states: list[Tensor] = []
        modules: list[nn.Module] = [self.decoder.embed, *self.decoder.layers[:-1], self.decoder.final_norm]
        hooks = [
            module.register_forward_hook(lambda module, inputs, output: states.append(output[:, -n_scored:]))
            for module in (modules if with_states else [])
        ]
        try:
            return [self.decoder(tokens[:, start:stop])[:, -n_scored:], *states]
        finally:
            for hook in hooks:
                hook.remove()

    def _next(self, tokens: Tensor, cache: TextCache | None, makes_cache: bool | None) -> LLPOutput:
        """Logits of the last position, (B, 1, vocab_size), and the cache, which has read the texts then."""
        n, (window_len, stride) = tokens.shape[1], (self.config.window_len, self.config.stride)
        first_scored = (n - 1) // stride * stride  # by the window of the last position
        if cache is None and not makes_cache:
            first = window_start(n - 1, window_len, stride)
            window = KVCache(self.decoder.geometry, len(tokens), None)
            window.clear((first, first_scored + stride))  # the first latent is where it is in the full window
            return LLPOutput(logits=self.decoder.extend(tokens[:, first:], [window], 1))
        if cache is None or not cache.follows(tokens):
            is_one_pass = self.decoder.geometry.scores_as_one_pass(window_len, stride)
            kv_cache = KVCache(self.decoder.geometry, len(tokens), None if is_one_pass else (window_len, stride))
            cache = TextCache(kv_cache, tokens[:, :0])
        if cache.kv_cache.window is not None and cache.kv_cache.n_read < first_scored:  # no logits of earlier windows
            cache.kv_cache.remember(tokens[:, cache.kv_cache.n_read : first_scored])
        logits = extend(self.decoder, tokens[:, cache.kv_cache.n_read :], cache.kv_cache, 1)
        cache.tokens = tokens
        return LLPOutput(logits=logits.clone(), kv_cache=cache)  # a copy that is no inference tensor
