"""One file made of a sharded checkpoint."""

from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from llp.atomic_files import is_exported, whole_checkpoint
from llp.checkpoints.reading import read
from llp.errors import SettingError


def consolidate(folder: Path) -> Path:
    """Make one file of a sharded checkpoint, beside it, that any strategy loads; it must fit in memory.

    Raises:
        SettingError: If there is no such checkpoint.
    """
    if not folder.is_dir() or is_exported(folder):
        raise SettingError("FOLDER", folder, "there is no such folder; give that of a sharded checkpoint")
    path = folder.with_name(f"{folder.stem}-consolidated{folder.suffix}")
    with (
        whole_checkpoint(path) as temporary,
        NamedTemporaryFile(dir=path.parent, prefix=".", suffix=".unfinished") as shards,  # `tidy` knows such names
    ):
        torch.save(merged(folder, Path(shards.name)), temporary)
    return path


def merged(folder: Path, shards: Path) -> dict[str, Any]:
    """The content of a sharded checkpoint as that of a single file; its tensors are mapped from the file `shards`."""
    checkpoint = read(folder)
    dcp_to_torch_save(folder, shards)
    weights = torch.load(shards, weights_only=True, mmap=True)
    checkpoint["state_dict"] = weights["state_dict"]
    checkpoint["optimizer_states"] = [value for key, value in sorted(weights.items()) if key.startswith("optimizer_")]
    return checkpoint
