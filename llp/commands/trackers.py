"""The loggers that a configuration names beside the run's TensorBoard: Weights & Biases, MLflow, Comet, CSV, others."""

import json
import random
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from jsonargparse import Namespace
from lightning.pytorch.loggers import CometLogger, CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.seed import isolate_rng

from llp.atomic_files import keep_older, write_whole
from llp.checkpoints.reading import class_path, import_class
from llp.errors import SettingError, require


class _Known(NamedTuple):
    """What a logger calls the name of a run and the identifier of an earlier one that goes on, and its package."""

    name: str | None = None
    identifier: str | None = None
    package: str | None = None


_KNOWN: dict[type[Logger], _Known] = {
    WandbLogger: _Known("name", "id", "wandb"),
    MLFlowLogger: _Known("run_name", "run_id", "mlflow"),
    CometLogger: _Known("name", "experiment_key", "comet_ml"),
    CSVLogger: _Known("version"),
    TensorBoardLogger: _Known("version"),
}
_FILE = "trackers.json"


def _known(cls: type[Logger]) -> _Known:
    return next((known for base, known in _KNOWN.items() if issubclass(cls, base)), _Known())


def identifiers(folder: Path) -> dict[str, str]:
    """The tracker run id stored for each logger class."""
    path = folder / _FILE
    records = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    return {record["class"]: record["run"] for record in records}


def for_run(logger: Namespace, name: str, earlier: dict[str, str]) -> Namespace:
    """A configured logger with the run's name and, on a resume, the id of the tracker run to continue.

    Args:
        logger: The class and its arguments; arguments that the user set are kept.
        name: The run's name.
        earlier: Those that `identifiers` returned.

    Raises:
        SettingError: If its package is not installed.
    """
    logger = logger.clone()
    cls = import_class(logger.class_path, Logger)
    known = _known(cls)
    remedy = f"the package {known.package} is not installed; install it with pip"
    require(known.package is None or find_spec(known.package) is not None, "trainer.logger", cls.__name__, remedy)
    values = {known.name: name, known.identifier: earlier.get(class_path(cls))}
    if issubclass(cls, WandbLogger):
        values["resume"] = "allow"  # otherwise W&B rejects an existing id
    for argument, value in values.items():
        if argument is None or value is None:
            continue
        if argument not in logger.init_args:  # not an argument of Lightning's logger; passed through
            logger.dict_kwargs = {argument: value, **(logger.get("dict_kwargs") or {})}
        elif logger.init_args[argument] is None:
            logger.init_args[argument] = value
    return logger


def open_trackers(loggers: Iterable[Logger], folder: Path) -> None:
    """Start the trackers before any long work, and keep their run ids in the run's folder.

    Raises:
        SettingError: If one can't be opened.
    """
    runs = identifiers(folder)
    for logger in loggers:
        if isinstance(logger, CSVLogger):
            keep_older(Path(logger.log_dir) / "metrics.csv")  # Lightning would remove it
        try:
            with isolate_rng(include_cuda=False):
                random.seed()  # Comet draws the name of an archive: with the run's seed two runs would share one
                getattr(logger, "experiment", None)  # reading it is what starts the tracker
        except Exception as error:  # each tracker raises its own types
            cause = " ".join(str(error).split()).rstrip(".")
            remedy = f"it can't be opened: {cause}; fix this, or train without it: --trainer.logger true"
            raise SettingError("trainer.logger", type(logger).__name__, remedy) from error
        if _known(type(logger)).identifier is not None:
            runs[class_path(type(logger))] = str(logger.version)
    if runs:
        records = [{"class": cls, "run": run} for cls, run in runs.items()]
        write_whole(folder / _FILE, json.dumps(records, indent=1) + "\n")
