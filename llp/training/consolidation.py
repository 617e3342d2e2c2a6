"""One file out of a sharded checkpoint."""

from pathlib import Path

import torch
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save

from llp.errors import SettingError
from llp.run_folder import publish, unfinished
from llp.training.checkpoints import read


def consolidate(folder: Path) -> Path:
    """Make one file of a sharded checkpoint, beside it, that any strategy loads; it must fit in memory.

    Raises:
        SettingError: If there is no such checkpoint.
    """
    if not folder.is_dir():
        raise SettingError("FOLDER", folder, "there is no such folder; give that of a sharded checkpoint")
    checkpoint = read(folder)
    path = folder.with_name(f"{folder.stem}-consolidated{folder.suffix}")
    shards = unfinished(path.with_suffix(".weights"))
    dcp_to_torch_save(folder, shards)
    weights = torch.load(shards, weights_only=True, mmap=True)
    checkpoint["state_dict"] = weights["state_dict"]
    checkpoint["optimizer_states"] = [value for key, value in sorted(weights.items()) if key.startswith("optimizer_")]
    torch.save(checkpoint, unfinished(path))
    publish(path)
    shards.unlink()
    return path
