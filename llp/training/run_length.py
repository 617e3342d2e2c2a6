"""How long a run is."""

from lightning.pytorch import Trainer


def total_steps(trainer: Trainer) -> int | None:
    """Optimizer steps of the whole run, those before a resume included; None: its length is not known."""
    steps = trainer.estimated_stepping_batches
    return int(steps) if 0 < steps < float("inf") else None
