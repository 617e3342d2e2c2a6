"""The figures of each validation within a run, as they come."""

from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from llp.checkpoints.callback import run_checkpoint

_FIGURES = {"loss": "validation loss", "bits_per_byte": "bits per byte", "accuracy": "accuracy"}


class ValidationLines(Callback):
    """Prints a line for each validation within a run: its step and figures, and whether it is the best.

    The run's checkpoint callback says what is best. Without a progress bar (`enable_progress_bar=False`) nothing is
    printed. `curve` holds the step and the figures of each validation, from before a resume too, and whether they are
    `complete`: a limited number of batches is only a part of the split. `latest` and `best` are two of them.
    """

    def __init__(self) -> None:
        self.curve: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {}

    @property
    def latest(self) -> dict[str, Any]:
        return self.curve[-1] if self.curve else {}

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "curve": self.curve}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.curve = state_dict["best"], state_dict["curve"]

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        metrics = trainer.callback_metrics
        figures = {name.removeprefix("val/"): float(metrics[name]) for name in metrics if name.startswith("val/")}
        n_scored, expected = pl_module.score.scored()
        before = [entry for entry in self.curve if entry["step"] < trainer.global_step]  # a resume may validate again
        self.curve = [*before, {"step": trainer.global_step, "complete": n_scored == expected, **figures}]
        is_best = _is_best(trainer)
        if is_best:
            self.best = self.latest
        bar = trainer.progress_bar_callback
        if bar is not None and trainer.is_global_zero:
            bar.print(f"{figures_line(self.latest)}{', the best so far' if is_best else ''}")


def figures_line(figures: dict[str, Any]) -> str:
    """The step of a validation, its figures, and whether they are those of a part of the split."""
    known = [f"{label} {figures[name]:.4f}" for name, label in _FIGURES.items() if name in figures]
    part = [] if figures["complete"] else ["on a part of the split"]
    return f"step {figures['step']:,}: {', '.join([*known, *part])}"


def _is_best(trainer: Any) -> bool:
    """Whether the checkpoint callback, which comes after this one, will take the newest figures for the best."""
    checkpoint = run_checkpoint(trainer)
    if checkpoint is None or checkpoint.monitor not in trainer.callback_metrics:
        return False
    value, best = trainer.callback_metrics[checkpoint.monitor], checkpoint.best_model_score
    if best is None:
        return not bool(torch.isnan(value))
    return bool(value < best if checkpoint.mode == "min" else value > best)
