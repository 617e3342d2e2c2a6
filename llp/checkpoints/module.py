"""What a model knows of its run, and what of it goes into a checkpoint and comes back."""

from typing import Any, ClassVar

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch.optim import Optimizer

from llp import optimization
from llp.checkpoints import exported_folder, reading, settings_history
from llp.checkpoints.fingerprints import weights_digest
from llp.decoder.decoder import TextDecoder
from llp.errors import require
from llp.lightning_internals import find_callback


class CheckpointedModule(LightningModule):
    """A LightningModule whose checkpoints say what it is, how it was trained, and how its run goes on."""

    changeable_settings: ClassVar[frozenset[str]] = frozenset()
    """The settings that can change on a resume; all others make the model what it is."""

    decoder: TextDecoder

    def __init__(self) -> None:
        super().__init__()
        self.trained: dict[str, Any] = {"step": None, "seed": None}
        """How a loaded model was trained; see `reading.training_record`."""
        self.history: list[dict[str, Any]] = []
        """The run's settings: for each start those that changed, and the step, counted from 1, from which they hold."""
        self.initialized_from: dict[str, Any] | None = None
        """The checkpoint whose weights the run started from, or None if it started from random ones."""
        self.initial_weights = ""
        """Digest of the weights that the run started from, those that all architectures of equal settings share:
        without `CompressedAttention`'s map."""
        self.exported: dict[str, Any] | None = None
        """Of a model from an exported folder: where that comes from, and whether its weights were changed since."""
        self.loaded_from: str | None = None
        """The path of the checkpoint that `llp.load` read the model from."""
        self.run_config: str | None = None
        """The run's configuration as YAML, if it was started from the command line."""
        self.optimizer_settings: list[dict[str, Any]] | None = None
        """The settings of the optimizer's groups, as `configure_optimizers` made them."""

    @property
    def base(self) -> str | None:
        """Digest of the frozen weights that a checkpoint's weights are used with; None if it holds all of them."""
        return None

    @property
    def data(self) -> Any:
        """The trainer's data module, which may be anybody's; None if there is none."""
        return getattr(self.trainer, "datamodule", None)

    @property
    def fingerprints(self) -> dict[str, str]:
        """Digests of the initial weights, and of the batches that this process has trained on."""
        batches = self.data.progress.fingerprints if hasattr(self.data, "progress") else {}
        return {"initial_weights": self.initial_weights, **batches}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["architecture"] = reading.class_path(type(self))
        checkpoint["seed"] = settings_history.seed()
        checkpoint["tokenizer"] = reading.stored_tokenizer(self.data)
        checkpoint["settings_history"] = self.history
        checkpoint["initialized_from"] = self.initialized_from
        checkpoint["fingerprints"] = self.fingerprints
        checkpoint["config"] = self.run_config
        checkpoint["base"] = self.base
        if "optimizer_states" in checkpoint:  # not with `save_weights_only`
            name_optimizer_states(checkpoint["optimizer_states"], self.trainer.optimizers, self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        reading.check_fits(checkpoint, self)
        self.trained = reading.training_record(checkpoint)
        self.history = checkpoint["settings_history"]
        self.initialized_from = checkpoint["initialized_from"]
        self.initial_weights = checkpoint["fingerprints"].get("initial_weights", "")
        self.exported = exported_folder.outcome(checkpoint)
        if self.exported is not None and self.exported["weights_changed"]:
            rank_zero_info(exported_folder.CHANGED)
        if self._trainer is None:  # `llp.load`
            return
        reading.check_tokenizer(checkpoint, self.data)
        if self.trainer.state.fn == TrainerFn.FITTING:
            self.check_resume(self.trainer, self.data)
            has_average = find_callback(self.trainer, WeightAveraging) is not None
            remedy = (
                "the run averages its weights, and those of its checkpoint are the average; keep its callback, or "
                "start a new run from the average with --init_from"
            )
            require(has_average or "current_model_state" not in checkpoint, "trainer.callbacks", "none", remedy)
            if hasattr(self.data, "progress"):
                digests = checkpoint["fingerprints"].items()
                self.data.progress.fingerprints = {name: one for name, one in digests if name != "initial_weights"}

    def check_resume(self, trainer: Trainer, data: Any) -> None:
        """Raise a `SettingError` for a setting that differs from those in `history` and can't change on a resume."""
        changeable = self.changeable_settings | getattr(data, "changeable_settings", frozenset())
        now = settings_history.settings_of(trainer, self, data)
        settings_history.check_resume(self.history, now, changeable)

    def on_train_start(self) -> None:
        """Take the initial weights' digest; report, record and apply the settings that differ from a resumed run's."""
        if self.trainer.global_step == 0:
            self.initial_weights = weights_digest(self.decoder.named_parameters(), skip=["compress."])
        now, step = settings_history.settings_of(self.trainer, self, self.data), self.trainer.global_step + 1
        changed = settings_history.changes(self.history, now)
        for line in settings_history.describe(self.history, changed, step):
            rank_zero_info(line)
        if changed:
            self.history = [*self.history, {"step": step, "settings": changed}]
        if self.optimizer_settings is not None:
            optimization.apply_settings(self.trainer, self.optimizer_settings)


def name_optimizer_states(states: list[dict[str, Any]], optimizers: list[Optimizer], model: LightningModule) -> None:
    """Key the optimizers' states by the names of the parameters, in place.

    Unlike names, numbers depend on the strategy: they follow the order of the optimizer's groups, or of the model.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    for state, optimizer in zip(states, optimizers, strict=True):
        if not state:  # another rank has it
            continue
        new_names: dict[Any, str] = {}
        for saved, group in zip(state["param_groups"], optimizer.param_groups, strict=True):
            new = [names[id(parameter)] for parameter in group["params"]]
            new_names.update(zip(saved["params"], new, strict=True))
            saved["params"] = new
        state["state"] = {new_names[key]: value for key, value in state["state"].items()}
