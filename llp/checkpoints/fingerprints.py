"""Digests of weights: whether two runs started from the same ones. Those of their batches are the data's."""

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
            own = (weight.to_local() if isinstance(weight, DTensor) else weight).detach().cpu().contiguous()
            digest.update(own.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
