"""Digests of what a run started from and what it has read, which show whether two runs can be compared."""

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor


def weights_digest(weights: Iterable[tuple[str, Tensor]], skip: Iterable[str] = ()) -> str:
    """SHA-256 over the names and the bytes of named weights, in the order of their names.

    Of sharded weights only this process's shards are included.

    Args:
        weights: Names and tensors.
        skip: Prefixes of names to leave out.
    """
    digest, left_out = hashlib.sha256(), tuple(skip)
    for name, weight in sorted(weights, key=lambda one: one[0]):
        if not name.startswith(left_out):
            digest.update(name.encode())
            digest.update(_bytes(weight.to_local() if isinstance(weight, DTensor) else weight))
    return digest.hexdigest()


def chained_digest(before: str, batch: Iterable[Tensor]) -> str:
    """SHA-256 over the digest of the batches before and the next batch, and so a digest of the whole sequence."""
    digest = hashlib.sha256(before.encode())
    for tensor in batch:
        digest.update(_bytes(tensor))
    return digest.hexdigest()


def add_batch(fingerprints: dict[str, str], batch: Iterable[Tensor], number: int) -> None:
    """Update the digests of a run's batches in place.

    `training_windows` is the digest of all batches so far; `first_<k>_batches` is that of the first k, for k = 1, 2, 4,
    8, ..., so that runs of unequal length can be compared as far as both went.

    Args:
        fingerprints: Digests by name.
        batch: The next batch.
        number: The number of batches including this one.
    """
    digest = chained_digest(fingerprints["training_windows"], batch)
    fingerprints["training_windows"] = digest
    if number.bit_count() == 1:
        fingerprints[f"first_{number}_batches"] = digest


def _bytes(tensor: Tensor) -> memoryview:
    """The bytes of a tensor, which `hashlib` reads."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
