"""A sharded checkpoint's folder is opened with nothing executed that it holds.

torch unpickles two parts of such a folder, and so would run whatever a foreign one names: `.metadata`, and the values
in the shards that are no tensors. Both are read here first, by means that build nothing but known types.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex

_METADATA = "torch.distributed.checkpoint.metadata"
_TYPES = {
    (_METADATA, "BytesStorageMetadata"),
    (_METADATA, "ChunkStorageMetadata"),
    (_METADATA, "Metadata"),
    (_METADATA, "MetadataIndex"),
    (_METADATA, "StorageMeta"),
    (_METADATA, "TensorProperties"),
    (_METADATA, "TensorStorageMetadata"),
    (_METADATA, "_MEM_FORMAT_ENCODING"),
    ("pathlib", "PosixPath"),
    ("torch", "Size"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("torch.serialization", "_get_layout"),
}
"""What torch's own `.metadata` is made of, besides the types of numbers (`torch.float32`)."""


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _TYPES or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no checkpoint of `llp fit` has")


def check_shards(folder: Path) -> None:
    """Read what is pickled in a sharded checkpoint's folder, and build nothing but what `llp fit` writes there.

    Raises:
        pickle.UnpicklingError: If it names anything else.
        Exception: Whatever reading raises where the folder is truncated or foreign.
    """
    for file in {folder / ".metadata", *folder.glob("*.metadata")}:  # a rank may have one of its own
        with file.open("rb") as stream:
            metadata = _MetadataUnpickler(stream).load()
        for name, kind in metadata.state_dict_metadata.items():
            if isinstance(kind, BytesStorageMetadata):
                _check_value(folder, metadata, name)


def _check_value(folder: Path, metadata: Metadata, name: str) -> None:
    """Read a value that is no tensor, a setting of the optimizer, say."""
    place = metadata.storage_data[MetadataIndex(name)]
    if place.transform_descriptors:  # what torch would read is not what lies in the file
        raise pickle.UnpicklingError(
            f"{name} is encoded ({place.transform_descriptors}), and `llp fit` encodes nothing"
        )
    with (folder / place.relative_path).open("rb") as stream:
        stream.seek(place.offset)
        torch.load(io.BytesIO(stream.read(place.length)), weights_only=True)
