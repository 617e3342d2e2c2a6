"""What training needs of a device's memory at least, and what there is."""

import math
import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.strategies import ModelParallelStrategy

from llp.checkpoints import reading
from llp.errors import SettingError, require

_GIB = 2**30
_MOST_LAYERS = 200
_CGROUP_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_REMEDY = (
    "lower data.init_args.batch_size (trainer.accumulate_grad_batches makes up for it) or the model's size, or use "
    "model.init_args.activation_checkpointing, trainer.precision bf16-mixed, or configs/trainer/fsdp2.yaml"
)


def check_memory(model: Any, trainer: Any) -> None:
    """Raise a `SettingError` if parameters, gradients and optimizer states alone exceed a device's memory.

    Args:
        model: A `LanguageModel`; nothing of it is built.
        trainer: The one that is to train it.
    """
    strategy = trainer.strategy
    bytes_each = 2 if str(trainer.precision).endswith("16-true") else 8 if trainer.precision == "64-true" else 4
    n_shards = trainer.world_size if isinstance(strategy, ModelParallelStrategy) else 1
    needed = training_bytes(parameter_count(model), bytes_each, n_shards)
    device = strategy.root_device
    n_processes = trainer.num_devices if device.type == "cpu" else 1  # those of this machine share its memory
    there = total_bytes(device)
    size = {name: model.hparams[name] for name in ("dim", "n_layers", "vocab_size")}
    remedy = (
        f"parameters, gradients and AdamW's states need {_gib(needed)} on each device, before any activation, and "
        f"{device} has {_gib(there / n_processes)}; lower them, or split them over more devices with "
        "configs/trainer/fsdp2.yaml, or halve them with trainer.precision bf16-true"
    )
    setting = ", ".join(f"model.init_args.{name}" for name in size)
    require(needed <= there / n_processes, setting, ", ".join(map(str, size.values())), remedy)


def training_bytes(n_parameters: float, bytes_each: int, n_shards: int) -> float:
    """Bytes of parameters, their gradients and AdamW's two moments on each of the devices that share them."""
    return 4 * n_parameters * bytes_each / n_shards


def check_batch(data: Any) -> None:
    """Raise a `SettingError` if the tokens of a training batch alone exceed the memory of this machine.

    Args:
        data: A `LanguageDataModule`; nothing of it is prepared.
    """
    needed, there = 8 * data.batch_size * data.window_len, total_bytes(torch.device("cpu"))
    setting = "data.init_args.batch_size, data.init_args.window_len"
    remedy = f"the tokens of a batch alone need {_gib(needed)}, and there are {_gib(there)}; lower one of the two"
    require(needed <= there, setting, f"{data.batch_size}, {data.window_len}", remedy)


def parameter_count(model: Any) -> float:
    """Number of parameters of a model that need not be built; infinite where a size overflows torch's integers.

    Of very many layers only some are built, and the others are taken to be like the last of them.
    """
    n_layers = model.hparams["n_layers"]
    built = min(n_layers, _MOST_LAYERS)
    try:
        count = _parameters_of(model, built)
        count_before = count if built == n_layers else _parameters_of(model, built - 1)
    except (RuntimeError, OverflowError, TypeError) as error:
        if "verflow" not in str(error):
            raise
        return math.inf
    return float(count + (n_layers - built) * (count - count_before))


def _parameters_of(model: Any, n_layers: int) -> int:
    meta_copy = reading.meta_copy({**model.hparams, "n_layers": n_layers}, model)
    return sum(parameter.numel() for parameter in meta_copy.parameters())


def total_bytes(device: torch.device) -> float:
    """All the memory of a device; of the CPU what its container may use. Infinite where it is not known."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[1])
    if device.type != "cpu":
        return math.inf
    limits = [Path(path).read_text().strip() for path in _CGROUP_LIMITS if Path(path).is_file()]
    installed = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return float(min([installed, *(int(limit) for limit in limits if limit.isdigit())]))


def exhausted(error: BaseException | None) -> SettingError | None:
    """The error to show for one that says that memory is short, or was raised from such a one; None: it is another."""
    while error is not None and not _is_exhaustion(error):
        error = error.__cause__
    if error is None:
        return None
    is_cuda = isinstance(error, torch.OutOfMemoryError) and torch.cuda.is_available()
    device = torch.device("cuda", torch.cuda.current_device()) if is_cuda else torch.device("cpu")
    reason = " ".join(str(error).split()) or "not enough memory"
    return SettingError("memory", f"{_gib(total_bytes(device))} ({device})", f"it is not enough ({reason}); {_REMEDY}")


def _is_exhaustion(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # torch's allocator of the CPU, and sizes beyond its integers, have no type of error of their own.
    return isinstance(error, RuntimeError) and any(
        words in str(error) for words in ("DefaultCPUAllocator", "Storage size calculation overflowed")
    )


def _gib(n_bytes: float) -> str:
    return f"{n_bytes / _GIB:,.1f} GiB" if math.isfinite(n_bytes) else "more bytes than can be counted"
