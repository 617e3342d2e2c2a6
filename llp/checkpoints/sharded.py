"""A sharded checkpoint: its folder is compared with its digests, and opened without executing what it holds.

torch unpickles two parts of such a folder, and so would execute whatever a foreign one names: `.metadata`, and the
values in the shards that are not tensors. Both are read here first, in ways that build only known types.
"""

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, MetadataIndex

from llp.atomic_files import file_sha256, file_sha256_once

_DIGEST = ".sha256"  # appended to the name of the file
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
"""What torch's own `.metadata` consists of, besides the types of numbers (`torch.float32`)."""


def write_digests(folder: Path, rank: int) -> None:
    """Write the SHA-256 of each file that this process has written, beside the file."""
    own = [*folder.glob(f"__{rank}_*.distcp")]
    if rank == 0:
        own += [folder / ".metadata", folder / "meta.pt"]
    for file in own:
        file.with_name(file.name + _DIGEST).write_text(file_sha256(file))


def check_digests(folder: Path) -> None:
    """Raise an error unless all files are what was written; a folder without digests is accepted as it is."""
    covered = {digest.with_suffix("") for digest in folder.glob(f"*{_DIGEST}")}
    if covered and not {*folder.glob("*.distcp"), folder / ".metadata", folder / "meta.pt"} <= covered:
        raise ValueError("the digest of one of its files is missing")
    for file in covered:
        if file_sha256_once(file) != file.with_name(file.name + _DIGEST).read_text():
            raise ValueError(f"{file.name} is not what was written")


class _MetadataUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _TYPES or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}, which no checkpoint of `llp fit` has")


def check_shards(folder: Path) -> None:
    """Read what is pickled in a folder, and build only what `llp fit` writes there.

    Raises:
        pickle.UnpicklingError: If it names anything else.
        Exception: Whatever reading raises if the folder is truncated or foreign.
    """
    for file in {folder / ".metadata", *folder.glob("*.metadata")}:  # a rank may have one of its own
        with file.open("rb") as stream:
            metadata = _MetadataUnpickler(stream).load()
        for name, kind in metadata.state_dict_metadata.items():
            if isinstance(kind, BytesStorageMetadata):
                _check_value(folder, metadata, name)


def _check_value(folder: Path, metadata: Metadata, name: str) -> None:
    """Read a value that is not a tensor, such as a setting of the optimizer."""
    stored = metadata.storage_data[MetadataIndex(name)]
    if stored.transform_descriptors:  # torch would read something else than what lies in the file
        raise pickle.UnpicklingError(
            f"{name} is encoded ({stored.transform_descriptors}), and `llp fit` encodes nothing"
        )
    with (folder / stored.relative_path).open("rb") as stream:
        stream.seek(stored.offset)
        torch.load(io.BytesIO(stream.read(stored.length)), weights_only=True)
