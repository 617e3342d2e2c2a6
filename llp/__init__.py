"""Long-context Perceiver language models: one LightningModule per architecture, `load` for a trained one.

`SegmentAttention` is LLP's attention alone.

The names below are imported when they are first used, so that `import llp` and `llp --help` stay light.
An architecture of your own needs no entry here: its class path is enough (`my_module.MyArchitecture`).
"""

import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from llp.version import __version__ as __version__

if TYPE_CHECKING:
    from llp.architectures.compressed_attention import CompressedAttention as CompressedAttention
    from llp.architectures.double_attention import DoubleAttention as DoubleAttention
    from llp.architectures.long_lora_perceiver import LLP as LLP
    from llp.architectures.perceiver_ar import PerceiverAR as PerceiverAR
    from llp.architectures.shifted_segments import ShiftedSegments as ShiftedSegments
    from llp.architectures.sliding_window import SlidingWindow as SlidingWindow
    from llp.architectures.split_attention import SplitAttention as SplitAttention
    from llp.architectures.transformer import Transformer as Transformer
    from llp.decoder.patterns import AttentionPattern as AttentionPattern
    from llp.decoder.patterns import CausalAttention as CausalAttention
    from llp.decoder.patterns import Layer as Layer
    from llp.decoder.patterns import SegmentAttention as SegmentAttention
    from llp.decoder.patterns import ShiftedSegmentAttention as ShiftedSegmentAttention
    from llp.decoder.patterns import SlidingWindowAttention as SlidingWindowAttention
    from llp.hf.pretrained_model import PretrainedModel as PretrainedModel
    from llp.language_model import LanguageModel as LanguageModel
    from llp.loading import load as load

# Large tensors on the CPU in large pages: at 8,192 positions a training step spends a sixth of its time on small ones
# (benchmarks/README.md). torch reads this at its first allocation.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

_HOMES = {
    "Transformer": "llp.architectures.transformer",
    "LLP": "llp.architectures.long_lora_perceiver",
    "SlidingWindow": "llp.architectures.sliding_window",
    "ShiftedSegments": "llp.architectures.shifted_segments",
    "PerceiverAR": "llp.architectures.perceiver_ar",
    "DoubleAttention": "llp.architectures.double_attention",
    "SplitAttention": "llp.architectures.split_attention",
    "CompressedAttention": "llp.architectures.compressed_attention",
    "PretrainedModel": "llp.hf.pretrained_model",
    "LanguageModel": "llp.language_model",
    "Layer": "llp.decoder.patterns",
    "AttentionPattern": "llp.decoder.patterns",
    "CausalAttention": "llp.decoder.patterns",
    "SegmentAttention": "llp.decoder.patterns",
    "ShiftedSegmentAttention": "llp.decoder.patterns",
    "SlidingWindowAttention": "llp.decoder.patterns",
    "load": "llp.loading",
}
ARCHITECTURES = tuple(name for name, home in _HOMES.items() if home.startswith("llp.architectures."))
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'llp' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
