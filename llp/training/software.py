"""Which software computes: the versions of its packages, and the commit of its source."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path

from llp.version import __version__

_PACKAGES = ("torch", "lightning", "torchmetrics", "datasets", "sentencepiece", "numpy")


def versions() -> dict[str, str]:
    """Those of Python, of the running source of `llp`, and of the packages that figures depend on."""
    installed = {name: metadata.version(name) for name in _PACKAGES}
    return {"python": platform.python_version(), "llp": __version__, **installed}


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
