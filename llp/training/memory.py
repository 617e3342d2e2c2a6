"""The message for a run whose memory runs out."""

import torch

from llp.errors import SettingError

_REMEDY = (
    "lower data.init_args.batch_size (trainer.accumulate_grad_batches makes up for it) or the model's size, or use "
    "configs/trainer/activation_checkpointing.yaml, bf16_mixed.yaml, or fsdp2.yaml on several devices"
)


def out_of_memory(error: BaseException | None) -> SettingError | None:
    """The error to show if this one, or one that it was raised from, says that memory ran out; otherwise None."""
    while error is not None and not _is_out_of_memory(error):
        error = error.__cause__
    if error is None:
        return None
    device = "GPU" if isinstance(error, torch.OutOfMemoryError) else "CPU"
    reason = " ".join(str(error).split()) or "not enough memory"
    return SettingError("memory", device, f"it is not enough ({reason}); {_REMEDY}")


def _is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # torch raises plain RuntimeErrors for allocations on the CPU and for sizes beyond its integers.
    words = "DefaultCPUAllocator", "Storage size calculation overflowed"
    return isinstance(error, RuntimeError) and any(word in str(error) for word in words)
