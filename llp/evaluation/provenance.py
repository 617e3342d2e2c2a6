"""Where figures come from: which model was scored, how it was trained, and which software computed them."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from llp.training import checkpoints

_PACKAGES = ("llp", "torch", "lightning", "torchmetrics", "datasets", "sentencepiece", "numpy")


def model_protocol(model: Any, ckpt_path: str | Path | None) -> dict[str, Any]:
    """Which model was scored, how it was trained, and which software computed its figures."""
    return {
        "architecture": checkpoints.class_path(type(model)),
        "hyperparameters": dict(model.hparams),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "checkpoint": None if ckpt_path is None else str(ckpt_path),
        "checkpoint_sha256": None if ckpt_path is None else checkpoints.sha256(ckpt_path),
        **model.trained,
        "settings_history": model.history,
        "initialized_from": model.initialized_from,
        "precision": str(model.trainer.precision),
        "versions": versions(),
        "git_commit": git_commit(),
    }


def versions() -> dict[str, str]:
    """Those of Python and of the packages that figures depend on."""
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in _PACKAGES}}


def git_commit() -> str | None:
    """The commit of the running source tree, followed by `-dirty` if files differ from it; None outside git."""
    try:
        # Fails if this file doesn't belong to the repository: an installed copy inside somebody else's.
        _git("ls-files", "--error-unmatch", Path(__file__).name)
        return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*arguments: str) -> str:
    folder = Path(__file__).parent
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()
