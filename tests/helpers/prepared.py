"""Text that is prepared for a test."""

from types import SimpleNamespace

from datamodules import Bytes, WikiText103
from helpers.small_models import build


def prepared(data, stage="fit"):
    data.prepare_data()
    data.setup(stage)
    return data


def prepare(path, cache, **settings):
    """WikiText-103 as bytes."""
    return prepared(
        WikiText103(str(path), cache_dir=str(cache), **{"tokenizer": Bytes(), "window_len": 16, **settings})
    )


def attach(data, model=None, **trainer):
    """A stand-in for the parts of a trainer that the data module asks, and the model's geometry."""
    model = model or build("LLP")
    limits = {f"limit_{stage}_batches": 1.0 for stage in ("val", "test", "predict")}
    data.trainer = SimpleNamespace(
        **{"max_steps": 10, "accumulate_grad_batches": 1, "global_rank": 0, "world_size": 1, **limits, **trainer}
    )
    data.geometry = model.geometry
    return data


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
