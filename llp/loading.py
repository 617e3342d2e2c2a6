"""A trained model from a run's folder or a checkpoint, in one call."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from llp.checkpoints import reading
from llp.errors import SettingError
from llp.evaluation.token_losses import TokenLoss, text_losses
from llp.generation.continuation import continue_text
from llp.text_model import TextModel
from llp.training_module import TrainingModule


@dataclass
class LoadedModel:
    """A trained model in evaluation mode, which scores and continues texts.

    Attributes:
        module: The language model.
        path: The checkpoint or exported folder that it was read from.
        text: The model with its tokenizer, or None if it was not trained on text.
    """

    module: TrainingModule
    path: Path
    text: TextModel | None

    def to(self, device: torch.device | str) -> Self:
        """Move the model to a device; returns itself."""
        self.module.to(device)
        return self

    def as_text_model(self) -> TextModel:
        """The model with its tokenizer.

        Raises:
            SettingError: If it was not trained on text.
        """
        if self.text is None:
            remedy = "the model has no tokenizer, because it was not trained on text; load one that was"
            raise SettingError("ckpt_path", self.path, remedy)
        return self.text

    def tokens(self, text: str) -> Tensor:
        """The start token and the tokens of a text: (1, N + 1) int64."""
        return self.as_text_model().tokens(text)

    def token_losses(self, text: str) -> list[TokenLoss]:
        """Text and loss in nats of each token of a text, scored in the same way as by `llp test`; see `text_losses`."""
        return text_losses(self.as_text_model(), text)

    def generate(self, prompt: str = "", **settings: Any) -> Iterator[str]:
        """Yield a continuation of a prompt piece by piece; `settings` are arguments of `continue_text`."""
        return continue_text(self.as_text_model(), prompt, **settings)


def load(path: str | Path) -> LoadedModel:
    """Load a trained model in evaluation mode on the CPU. The training data is not needed.

    Args:
        path: A checkpoint, a folder written by `llp export`, or a run's folder. From a run's folder, `best.ckpt` is
            loaded, or the newest intact checkpoint if there is no best one.

    Raises:
        SettingError: If there is no checkpoint, or if it can't be read, is sharded, or has no architecture.
    """
    path = chosen_checkpoint(Path(path))
    reading.require_one_file(path)
    checkpoint = reading.read(path)
    cls = reading.import_class(checkpoint["architecture"], TrainingModule)
    module: TrainingModule = cls(**checkpoint["hyper_parameters"])
    module.configure_model()
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"])
    module.loaded_from = str(path)
    return LoadedModel(module.eval(), path, _text_model(module, checkpoint))


def _text_model(module: TrainingModule, checkpoint: dict[str, Any]) -> TextModel | None:
    stored = checkpoint["tokenizer"]
    if stored is None:
        return None
    lengths = checkpoint["datamodule_hyper_parameters"]
    asked = (lengths[name] for name in ("window_len", "scoring_window_len", "scoring_stride"))
    window = module.geometry.scoring_window(*asked)
    return TextModel(module, reading.restored_tokenizer(stored), stored["start_token"], window)


def chosen_checkpoint(path: Path) -> Path:
    """The best checkpoint of a run's folder, or the newest intact one if there is no best one. Other paths unchanged.

    Raises:
        SettingError: If the folder of a run has no intact checkpoint.
    """
    folder = path / "checkpoints"
    if not folder.is_dir():
        return path
    best = folder / "best.ckpt"
    newest = best if best.exists() else next(reading.newest_first(folder), None)
    if newest is None:
        raise SettingError("ckpt_path", path, f"there is no intact checkpoint in {folder}")
    return newest
