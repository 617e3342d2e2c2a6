"""The tokenizer of a checkpoint in place of the one that its run's configuration would make anew."""

from typing import Any

import yaml
from jsonargparse import Namespace

from llp.checkpoints import reading


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
