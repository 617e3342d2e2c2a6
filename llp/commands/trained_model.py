"""What the subcommands share that use a trained model and no Trainer."""

from collections.abc import Mapping
from typing import Any

import yaml
from jsonargparse import Namespace
from lightning.fabric import Fabric

from datamodules.tokenizers import HuggingFaceTokenizer
from llp.checkpoints import reading
from llp.loading import load


class TrainedModel:
    """A trained model on a device, and in the precision that its layers compute in.

    Args:
        ckpt_path: A checkpoint or a run's folder; or best, last or auto, with --name.
        name: The run in lightning_logs/.
        accelerator: One of Lightning's: cpu, gpu or auto.
        precision: One of Lightning's: 32-true, bf16-mixed, ...
    """

    def __init__(
        self, ckpt_path: str, name: str | None = None, accelerator: str = "auto", precision: str = "32-true"
    ) -> None:
        self.ckpt_path, self.precision = ckpt_path, precision
        fabric = Fabric(accelerator=accelerator, devices=1, precision=precision)  # type: ignore[arg-type]
        self.autocast = fabric.autocast
        self.loaded = load(ckpt_path).to(fabric.device)


def own_tokenizer(model: Mapping[str, Any]) -> str | None:
    """The folder of the tokenizer that the data take from a model: that of a pretrained one, if it has one."""
    own = model.get("init_args", {})
    if not model["class_path"].endswith(".PretrainedModel") or own.get("path") is None or own.get("from_scratch"):
        return None
    from llp.hf.pretrained_model import model_folder

    folder = model_folder(own["path"], own.get("revision"))
    return str(folder) if (folder / HuggingFaceTokenizer.file_name).exists() else None


def with_own_tokenizer(config: Namespace) -> Namespace:
    """A configuration whose data takes the tokenizer of a pretrained model, if one is trained further and has one."""
    folder = own_tokenizer(config.model.as_dict())
    if folder is not None and "tokenizer" in config.data.init_args:
        config = config.clone()
        config.data.init_args.tokenizer = HuggingFaceTokenizer(folder)
    return config


def with_stored_tokenizer(config: Namespace, checkpoint: dict[str, Any] | None) -> Namespace:
    """A configuration whose data takes the checkpoint's own tokenizer, unless it names another than the run had.

    So nothing is trained again, and the text, or the tokenizer's file, may have moved or changed since.
    """
    stored = None if checkpoint is None else checkpoint["tokenizer"]
    if checkpoint is None or stored is None or checkpoint["config"] is None:
        return config
    configured = config.data.init_args.get("tokenizer")
    theirs = yaml.safe_load(checkpoint["config"])["data"]["init_args"].get("tokenizer")
    if (None if configured is None else configured.as_dict()) != theirs:
        return config
    config = config.clone()
    config.data.init_args.tokenizer = reading.restored_tokenizer(stored)
    return config
