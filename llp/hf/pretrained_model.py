"""A causal model of transformers as a LightningModule, which trains, scores and generates like every architecture."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from llp.atomic_files import file_sha256
from llp.checkpoints.reading import class_path, import_class
from llp.decoder.geometry import Geometry
from llp.decoder.patterns import AttentionPattern, CausalAttention, Layer
from llp.errors import SettingError, require
from llp.hf.attention import set_attention
from llp.hf.decoder import PretrainedDecoder, logit_scale
from llp.training_module import TrainingModule


@dataclass(frozen=True)
class Lora:
    """Low-rank adapters (arXiv 2106.09685), from the package peft.

    Attributes:
        rank: Rank of the adapters.
        alpha: The output of an adapter is multiplied by alpha / rank.
        targets: Names of the linear modules that get adapters.
        also_train: Parameters whose names contain one of these strings are trained, too. LongLoRA (arXiv 2309.12307)
            trains embeddings and norms.
    """

    rank: int = 8
    alpha: int = 16
    targets: Sequence[str] = ("q_proj", "k_proj", "v_proj", "o_proj")
    also_train: Sequence[str] = ()

    def __post_init__(self) -> None:
        require(self.rank >= 1, "lora.rank", self.rank, "set it to 1 or more")

    def add_to(self, model: nn.Module) -> None:
        """Add adapters to a model, in place, and freeze all other parameters except those of `also_train`."""
        from peft import LoraConfig, inject_adapter_in_model  # takes seconds, and only adapters need it

        linear = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
        for target in self.targets:
            remedy = f"no linear module has this name; choose from {', '.join(sorted(linear))}"
            require(target in linear, "model.init_args.lora.targets", target, remedy)
        config = LoraConfig(r=self.rank, lora_alpha=self.alpha, target_modules=list(self.targets))
        inject_adapter_in_model(config, model)
        for part in self.also_train:
            found = [parameter for name, parameter in model.named_parameters() if part in name and "lora_" not in name]
            require(len(found) > 0, "model.init_args.lora.also_train", part, "no name of a parameter contains it")
            for parameter in found:
                parameter.requires_grad_(True)


@dataclass(frozen=True)
class WithFirstTokens(AttentionPattern):
    """A pattern in which every position also sees the first tokens of the window."""

    pattern: AttentionPattern
    n_first: int

    def sees(self, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return self.pattern.visible(head, query, key) | (key < self.n_first)

    def check_window(self, n: int) -> None:
        self.pattern.check_window(n)


class PretrainedModel(TrainingModule):
    """A causal language model of transformers whose layers use an attention pattern of this package.

    It needs the packages of the extra `pretrained`: `pip install -e ".[pretrained]"` in a clone of the repository.

    Args:
        vocab_size: Number of tokens in the vocabulary of the data's tokenizer. On the command line it comes from the
            data.
        path: Folder of a model of transformers, or its name on the Hub.
        revision: Commit, branch or tag of a model on the Hub.
        from_scratch: Whether to start from random weights instead of the model's own.
        config: With `from_scratch` and without `path`: `model_type` and the other settings of the configuration.
        pattern: The attention pattern. None leaves the attention dense.
        keep_first: Number of tokens at the beginning of a window that every position sees, in addition to the pattern.
        dense_every: Leave every `dense_every`-th layer dense, counted back from the last, as in `LLP`. None: all layers
            use the pattern.
        lora: Settings of low-rank adapters. None trains all weights.
        activation_checkpointing: Whether training stores only the input of each layer and recomputes the rest.
        kwargs: Arguments of `TrainingModule`.

    Raises:
        SettingError: If a value can't be used, or there is no such model.
    """

    changeable_settings = TrainingModule.changeable_settings | {"activation_checkpointing", "path"}

    def __init__(
        self,
        vocab_size: int | None = None,
        path: str | None = None,
        revision: str | None = None,
        from_scratch: bool = False,
        config: dict[str, Any] | None = None,
        pattern: AttentionPattern | None = None,
        keep_first: int = 4,
        dense_every: int | None = None,
        lora: Lora | None = None,
        activation_checkpointing: bool = False,
        **kwargs: Any,
    ) -> None:
        # A checkpoint holds plain values, from which the settings are rebuilt.
        if isinstance(pattern, dict):
            pattern = import_class(pattern["class_path"], AttentionPattern)(**pattern["init_args"])
        self.pattern, self.lora = pattern, Lora(**lora) if isinstance(lora, dict) else lora
        if pattern is not None:
            pattern = {"class_path": class_path(type(pattern)), "init_args": asdict(pattern)}  # type: ignore[assignment]
        lora = None if self.lora is None else asdict(self.lora)  # type: ignore[assignment]
        self.transformers_config = read_config(path, revision, from_scratch, config)
        n_tokens = self.transformers_config.vocab_size
        vocab_size = n_tokens if vocab_size is None else vocab_size
        super().__init__(**kwargs)
        remedy = f"the model has {n_tokens} tokens; give the data the model's own tokenizer"
        require(from_scratch or vocab_size <= n_tokens, "vocab_size", vocab_size, remedy)
        if from_scratch:
            self.transformers_config.vocab_size = vocab_size
        self.path, self.revision, self.keep_first, self.dense_every = path, revision, keep_first, dense_every
        self.has_own_weights, self.activation_checkpointing = from_scratch, activation_checkpointing
        require(keep_first >= 0, "model.init_args.keep_first", keep_first, "set it to 0 or more")
        has_local = dense_every is None or dense_every >= 2
        require(has_local, "model.init_args.dense_every", dense_every, "set it to 2 or more")

    @cached_property
    def local_layers(self) -> list[int]:
        """Indices of the layers that use the pattern, counted from 0."""
        if self.pattern is None:
            return []
        numbers = range(self.transformers_config.num_hidden_layers)
        dense = () if self.dense_every is None else numbers[:: -self.dense_every]
        return [number for number in numbers if number not in dense]

    @cached_property
    def geometry(self) -> Geometry:
        config = self.transformers_config
        layers = [Layer(CausalAttention())] * config.num_hidden_layers
        if self.pattern is not None:
            local = WithFirstTokens(self.pattern, self.keep_first) if self.keep_first > 0 else self.pattern
            for number in self.local_layers:
                layers[number] = Layer(local)
        return Geometry(tuple(layers), config.num_attention_heads)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        trained, data = getattr(self.transformers_config, "max_position_embeddings", None), self.data
        has_dense = len(self.local_layers) < self.transformers_config.num_hidden_layers
        if has_dense and not self.has_own_weights and trained and data is not None and data.window_len > trained:
            text = f"data.init_args.window_len = {data.window_len}: the dense layers were trained on {trained} tokens"
            rank_zero_warn(f"{text}; beyond that, their loss rises")

    def configure_model(self) -> None:
        if hasattr(self, "decoder"):
            return
        model, scale = self._read_model().eval(), 1.0
        if model.device.type != "meta":  # there only the model's size is needed, and nothing is computed
            if self.pattern is not None:
                set_attention(model, self.pattern, self.keep_first, layers=self.local_layers)
            scale = logit_scale(model)
        if self.lora is not None:
            self.lora.add_to(model)
        if self.activation_checkpointing:
            older = model.gradient_checkpointing_enable  # the only name in transformers 4.57
            getattr(model, "activation_checkpointing_enable", older)({"use_reentrant": False})
        self.decoder = PretrainedDecoder(model.train(), self.geometry, scale)
        if self.lora is not None and not self.has_own_weights:  # random ones can't be read again
            store_trained_weights_alone(self.decoder)
        if self.device_mesh is not None:
            shard = partial(fully_shard, mesh=self.device_mesh["data_parallel"])
            layers = max((module for module in model.modules() if isinstance(module, nn.ModuleList)), key=len)
            for module in (*layers, self.decoder):
                shard(module)
            # Lightning would report frozen weights as missing when it reads a file; `check_fits` compares the others.
            self.strict_loading = self.lora is None
            for name in ("loss", "extend"):
                register_fsdp_forward_method(self.decoder, name)

    def _read_model(self) -> Any:
        dtype = torch.get_default_dtype()
        if not sys.stderr.isatty():
            disable_progress_bar()
        if self.has_own_weights or torch.get_default_device().type == "meta":
            return AutoModelForCausalLM.from_config(self.transformers_config, dtype=dtype)
        return from_path(AutoModelForCausalLM.from_pretrained, str(self.path), self.revision, dtype=dtype)

    @cached_property
    def base(self) -> str | None:
        """Digest of the weights that adapters belong to; None if a checkpoint holds all weights."""
        if self.lora is None or self.has_own_weights:
            return None
        files = model_folder(str(self.path), self.revision).iterdir()
        return file_sha256(*sorted(file for file in files if file.suffix in (".safetensors", ".bin")))


def model_folder(path: str, revision: str | None) -> Path:
    """The folder of a model, which is downloaded if `path` is a name on the Hub."""
    return Path(path) if Path(path).is_dir() else Path(from_path(snapshot_download, path, revision))


def from_path(read: Callable[..., Any], path: str, revision: str | None, **options: Any) -> Any:
    """What a function of transformers reads from a path, which is a folder or a name on the Hub.

    Raises:
        SettingError: If there is no model.
    """
    try:
        return read(path, revision=revision, **options)
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        remedy = f"there is no model of transformers ({reason}); give its folder or its name on the Hub"
        raise SettingError("model.init_args.path", path, remedy) from error


def read_config(path: str | None, revision: str | None, from_scratch: bool, config: dict[str, Any] | None) -> Any:
    """The configuration of the model.

    Raises:
        SettingError: If there is no configuration, or if a folder has no weights.
    """
    if path is None:
        own = config or {}
        remedy = "give the folder of a model or its name on the Hub, or from_scratch: true and a config"
        require(from_scratch and "model_type" in own, "model.init_args.path", path, remedy)
        return AutoConfig.for_model(**own)
    require(config is None, "model.init_args.config", config, "the model at `path` has its own; remove this setting")
    found = from_path(AutoConfig.from_pretrained, path, revision)
    is_whole = from_scratch or not Path(path).is_dir() or any(Path(path).glob("*.safetensors"))
    require(is_whole, "model.init_args.path", path, "it has no *.safetensors; add them, or set from_scratch: true")
    return found


def store_trained_weights_alone(decoder: nn.Module) -> None:
    """Omit frozen weights from a module's state dict, and don't report them as missing when it is loaded."""
    frozen = tuple(name for name, one in decoder.named_parameters(remove_duplicate=False) if not one.requires_grad)

    def leave_out(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
        for name in frozen:
            state.pop(prefix + name, None)

    def not_missed(module: nn.Module, found: Any) -> None:
        found.missing_keys[:] = [key for key in found.missing_keys if not key.endswith(frozen)]

    decoder.register_state_dict_post_hook(leave_out)
    decoder.register_load_state_dict_post_hook(not_missed)
