"""Where figures come from: which model was scored, how it was trained, and which software computed them."""

from pathlib import Path
from typing import Any

from llp.checkpoints import reading
from llp.training.run_record import git_commit, versions


def model_protocol(model: Any, ckpt_path: str | Path | None, precision: str) -> dict[str, Any]:
    """Which model was scored, how it was trained, and which software computed its figures, in which precision."""
    return {
        "architecture": reading.class_path(type(model)),
        "hyperparameters": dict(model.hparams),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "checkpoint": None if ckpt_path is None else str(ckpt_path),
        "checkpoint_sha256": None if ckpt_path is None else reading.sha256(ckpt_path),
        **({} if model.exported is None else {"exported": model.exported}),
        **model.trained,
        "settings_history": model.history,
        "initialized_from": model.initialized_from,
        "precision": precision,
        "versions": versions(),
        "git_commit": git_commit(),
    }
