"""`llp consolidate`: one file out of a sharded checkpoint."""

from pathlib import Path

from llp.checkpoints.consolidation import consolidate
from llp.errors import require


def run(options: list[str]) -> None:
    """Make one file of the sharded checkpoint that the only argument names."""
    require(len(options) == 1, "llp consolidate", " ".join(options), "name the folder of a sharded checkpoint")
    print(f"Written to {consolidate(Path(options[0]))}")
