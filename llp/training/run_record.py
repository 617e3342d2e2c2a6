"""What a training run leaves behind of itself in one small file: `run.json` in its folder."""

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from llp.run_folder import whole_file
from llp.training import checkpoints, settings
from llp.training.interruption import Stopped
from llp.training.metrics import RunMetrics

_FIGURES = ("tokens", "loss", "perplexity", "word_perplexity", "bits_per_byte")


class RunRecord(Callback):
    """Keeps `run.json`: how far a run is, what it took, and the figures of its best and its latest validation.

    Written where training starts and ends, and after each validation; whole or not at all. `state` in it is `running`,
    `finished`, `stopped` (by a signal) or `failed`; that of a process that was killed stays `running`. The best
    validation is the one with the least loss; `complete` says whether a validation scored the whole split.
    """

    def __init__(self) -> None:
        self.best: dict[str, Any] | None = None
        self.latest: dict[str, Any] | None = None
        self._path: Path | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "latest": self.latest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.latest = state_dict["best"], state_dict["latest"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = trainer.log_dir  # on every rank: it is broadcast
        if folder is not None and trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._path = Path(folder) / "run.json"
        self._write(trainer, pl_module, "running")

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        whole = pl_module.score.rows()[0]
        n_tokens = sum(document.tokens for document in pl_module.score.documents)
        figures = {name: whole[name] for name in _FIGURES}
        self.latest = {"step": trainer.global_step, "complete": whole["tokens"] == n_tokens, **figures}
        if math.isfinite(whole["loss"]) and (self.best is None or whole["loss"] < self.best["loss"]):
            self.best = self.latest
        self._write(trainer, pl_module, "running")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer, pl_module, "finished")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        with suppress(OSError):  # it may be what has ended the run
            self._write(trainer, pl_module, "stopped" if isinstance(exception, Stopped) else "failed")

    def _write(self, trainer: Any, model: Any, state: str) -> None:
        if self._path is None:
            return
        metrics = next(callback for callback in trainer.callbacks if isinstance(callback, RunMetrics))
        record = {
            "architecture": checkpoints.class_path(type(model)),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "state": state,
            "step": trainer.global_step,
            "max_steps": trainer.max_steps if trainer.max_steps > 0 else None,
            "trained_tokens": metrics.tokens,
            **settings.batch_of(settings.settings_of(trainer, model, trainer.datamodule)),
            "training_seconds": metrics.seconds,
            "best_validation": self.best and _finite(self.best),
            "latest_validation": self.latest and _finite(self.latest),
        }
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(self._path, keeps_older=False) as temporary:
            temporary.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _finite(figures: dict[str, Any]) -> dict[str, Any]:
    """The figures as JSON can hold them: null where they are not finite."""
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}
