"""How large everything is that `gpu.py` measures: on a GPU, and in the small form that shows on a CPU that it works."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

CONFIGS = Path(__file__).parents[1] / "configs"


class Model(NamedTuple):
    """A model's settings, and what it is trained on in a step."""

    settings: dict[str, Any]
    n: int
    batch: int


class Sizes(NamedTuple):
    """The sizes of all units."""

    dtype: torch.dtype
    rounds: int
    at_least_s: float
    """How long a timing takes at least."""
    matrix_size: int
    checked_segment_len: int
    checked_head_dims: tuple[int, ...]
    segment_len: int
    long_segment_len: int
    attention_dim: int
    attention_lens: tuple[int, ...]
    head_dims: tuple[int, ...]
    batched: tuple[int, int]
    """Batch and length of attention to short texts."""
    shapes: tuple[int, ...]
    """Widths of the matrix products of a layer."""
    models: dict[str, Model]
    lengths: tuple[int, ...]
    places: tuple[int, ...]
    """Where a token is generated."""
    batch: int
    """Texts that are generated side by side."""
    first_length: int
    most_length: int
    """Where the search for the longest text begins and ends."""
    curve_steps: int
    compiles: bool


def published() -> dict[str, Any]:
    """The published settings that make LLP's decoder."""
    config = yaml.safe_load((CONFIGS / "paper/llp_wikitext103.yaml").read_text(encoding="utf-8"))
    tokenizer = config["data"]["init_args"]["tokenizer"]["init_args"]
    names = ("dim", "n_layers", "n_heads", "segment_len", "dropout", "share_key_value", "rotary_first_layer_only")
    settings = {name: config["model"]["init_args"][name] for name in (*names, "initialization")}
    return {"vocab_size": tokenizer["vocab_size"], **settings}


def sized(dim: int, n_layers: int, n_heads: int, vocab_size: int = 32_000, segment_len: int = 256) -> dict[str, Any]:
    """Settings of a model of the library's own choices."""
    return {
        "vocab_size": vocab_size,
        "dim": dim,
        "n_layers": n_layers,
        "n_heads": n_heads,
        "segment_len": segment_len,
    }


def sizes_for(device: torch.device) -> Sizes:
    """What is measured on a GPU, or its small form."""
    if device.type == "cpu":
        tiny = sized(16, 2, 2, vocab_size=64, segment_len=8)
        return Sizes(
            dtype=torch.float32,
            rounds=2,
            at_least_s=0.0,
            matrix_size=64,
            checked_segment_len=12,
            checked_head_dims=(8,),
            segment_len=8,
            long_segment_len=16,
            attention_dim=16,
            attention_lens=(32, 64),
            head_dims=(8,),
            batched=(2, 32),
            shapes=(16,),
            models={
                "paper": Model({**published(), **tiny}, 32, 2),
                "no dropout": Model({**published(), **tiny, "dropout": 0.0}, 32, 2),
                "d 32": Model(sized(32, 2, 2, 64, 8), 32, 1),
                "130 M": Model(tiny, 32, 1),
            },
            lengths=(16, 32),
            places=(16,),
            batch=2,
            first_length=32,
            most_length=64,
            curve_steps=4,
            compiles=False,
        )
    return Sizes(
        dtype=torch.bfloat16,
        rounds=5,
        at_least_s=0.02,
        matrix_size=8192,
        checked_segment_len=256,
        checked_head_dims=(64, 128),
        segment_len=256,
        long_segment_len=1024,
        attention_dim=1024,
        attention_lens=(8192, 131_072),
        head_dims=(64, 128),
        batched=(8, 2048),
        shapes=(768, 1024, 2048),
        models={
            "paper": Model(published(), 2048, 8),
            "no dropout": Model({**published(), "dropout": 0.0}, 2048, 8),
            "d 1,024": Model(sized(1024, 24, 8), 8192, 2),
            "d 2,048": Model(sized(2048, 24, 16), 8192, 1),
            "130 M": Model(sized(768, 12, 12), 8192, 1),
        },
        lengths=(2048, 8192, 32_768, 131_072),
        places=(4096, 16_384),
        batch=16,
        first_length=131_072,
        most_length=16_777_216,
        curve_steps=250,
        compiles=True,
    )
