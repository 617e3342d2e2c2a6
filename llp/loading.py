"""A trained model from a run's folder or a checkpoint, in one call."""

from pathlib import Path

from llp.atomic_files import is_exported
from llp.checkpoints import reading
from llp.errors import SettingError
from llp.language_model import LanguageModel


def load(path: str | Path) -> LanguageModel:
    """A trained model in evaluation mode on the CPU, with its tokenizer; it needs nothing but the checkpoint.

    Args:
        path: A run's folder, whose `best.ckpt` is taken, or else its newest whole checkpoint; or a checkpoint; or a
            folder that `llp export` wrote.

    Raises:
        SettingError: If there is none, or it can't be read, or is sharded, or is of no architecture.
    """
    path = chosen_checkpoint(Path(path))
    reading.require_one_file(path)
    checkpoint = reading.read(path)
    cls = reading.import_class(checkpoint["architecture"], LanguageModel)
    model: LanguageModel
    if is_exported(path):
        model = cls(**checkpoint["hyper_parameters"])
        model.configure_model()
        model.on_load_checkpoint(checkpoint)
        model.load_state_dict(checkpoint["state_dict"])
    else:
        model = cls.load_from_checkpoint(path, map_location="cpu", weights_only=True)
    model.loaded_from = str(path)
    return model


def chosen_checkpoint(path: Path) -> Path:
    """The best checkpoint of a run's folder, or else its newest whole one; a checkpoint's path as it is.

    Raises:
        SettingError: If the folder of a run has no whole checkpoint.
    """
    folder = path / "checkpoints"
    if not folder.is_dir():
        return path
    best = folder / "best.ckpt"
    newest = best if best.exists() else next(reading.newest_first(folder), None)
    if newest is None:
        raise SettingError("ckpt_path", path, f"there is no whole checkpoint in {folder}")
    return newest
