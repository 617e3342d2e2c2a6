"""The base class of all architectures: a LightningModule that builds its decoder from attention patterns."""

from abc import abstractmethod
from functools import cached_property, partial
from typing import Any, Literal

from torch.distributed.fsdp import fully_shard

from llp.decoder.block import DecoderSettings
from llp.decoder.decoder import Decoder
from llp.decoder.geometry import Compression, Geometry
from llp.decoder.patterns import Layer
from llp.errors import require
from llp.training_module import TrainingModule


class LanguageModel(TrainingModule):
    """A decoder-only language model, with training and scoring. A subclass defines the attention pattern of each layer.

    No weights are allocated until `configure_model` builds `decoder`. A Trainer calls it; without a Trainer, the model
    builds itself when its weights are first needed: in `forward`, `parameters` or `load_state_dict`.

    Args:
        vocab_size: Number of tokens in the vocabulary. On the command line it comes from the data.
        dim: Width of the residual stream.
        n_layers: Number of layers.
        n_heads: Number of attention heads; `dim / n_heads` must be an even number.
        mlp_ratio: Width of the MLP, as a multiple of `dim`.
        dropout: Probability of dropping attention weights and hidden units of the MLP in training.
        rotary_base: Base of the rotary frequencies.
        tie_embeddings: Whether the head shares its weight with the token embedding.
        share_key_value: Whether keys and values share one projection (as in the published code).
        key_value_norm: Whether that projection is normalized within each head (as in the published code, except that of
            LLP).
        rotary_first_layer_only: Whether only the first layer uses rotary embedding (as in the published code, except
            that of V1).
        initialization: `normal` draws weights with a standard deviation of 0.02, and a smaller one for weights that
            write into the residual stream; `torch` keeps torch's defaults, as the published code does.
        activation_checkpointing: Whether training stores only the input of each layer and recomputes the rest in the
            backward pass: less memory, about a third more time, the same results.
        compile: Whether to compile the layers with `torch.compile`, which takes a minute or more at the start.
        kwargs: Arguments of `TrainingModule`.

    Raises:
        SettingError: If a value can't be used.
    """

    changeable_settings = TrainingModule.changeable_settings | {"dropout", "activation_checkpointing", "compile"}

    def __init__(
        self,
        vocab_size: int,
        dim: int = 512,
        n_layers: int = 6,
        n_heads: int = 8,
        mlp_ratio: int = 4,
        dropout: float = 0.0,
        rotary_base: float = 10000.0,
        tie_embeddings: bool = False,
        share_key_value: bool = False,
        key_value_norm: bool = False,
        rotary_first_layer_only: bool = False,
        initialization: Literal["normal", "torch"] = "normal",
        activation_checkpointing: bool = False,
        compile: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        require(n_layers >= 1, "n_layers", n_layers, "set it to 1 or more")
        self.n_layers = n_layers
        self.settings = self._chosen(DecoderSettings)

    @abstractmethod
    def layers(self) -> list[Layer]:
        """The layers from first to last, each with its attention pattern."""

    def compression(self) -> Compression | None:
        """How the history is shortened between the first layer's attention and its MLP. None if it is not shortened."""
        return None

    @cached_property
    def geometry(self) -> Geometry:
        """Reach, context lengths and windows, computed from the layers' patterns without any weights."""
        settings = self.settings
        return Geometry(tuple(self.layers()), settings.n_heads, self.compression(), settings.share_key_value)

    def configure_model(self) -> None:
        """Build the decoder once; under `ModelParallelStrategy`, shard it over the ranks, block by block."""
        if "decoder" in self._modules:
            return
        if self.device_mesh is None:
            self.decoder = Decoder(self.settings, self.geometry)
            return
        size = self.device_mesh["tensor_parallel"].size()
        remedy = "set it to 1, and data_parallel_size to the number of processes: only data parallelism is supported"
        require(size == 1, "trainer.strategy.init_args.tensor_parallel_size", size, remedy)
        self.decoder = Decoder(
            self.settings, self.geometry, partial(fully_shard, mesh=self.device_mesh["data_parallel"])
        )
