"""The loggers that a configuration names beside the run's TensorBoard: Weights & Biases, MLflow, Comet, CSV, others."""

import json
import random
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from jsonargparse import Namespace
from lightning.pytorch.loggers import CometLogger, CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.seed import isolate_rng

from llp.atomic_files import keep_older, whole_file
from llp.checkpoints.reading import class_path, import_class
from llp.errors import SettingError, require

_Known = tuple[str | None, str | None, str | None]
_KNOWN: dict[type[Logger], _Known] = {
    WandbLogger: ("name", "id", "wandb"),
    MLFlowLogger: ("run_name", "run_id", "mlflow"),
    CometLogger: ("name", "experiment_key", "comet_ml"),
    CSVLogger: ("version", None, None),
    TensorBoardLogger: ("version", None, None),
}
"""What a logger calls the name of a run, and the identifier of an earlier one that goes on; and its package."""
_FILE = "trackers.json"


def _known(cls: type[Logger]) -> _Known:
    return next((known for base, known in _KNOWN.items() if issubclass(cls, base)), (None, None, None))


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
    name_of, identifier_of, package = _known(cls)
    remedy = f"the package {package} is not installed; install it with pip"
    require(package is None or find_spec(package) is not None, "trainer.logger", cls.__name__, remedy)
    values = {name_of: name, identifier_of: earlier.get(class_path(cls))}
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
    known = identifiers(folder)
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
        if _known(type(logger))[1] is not None:
            known[class_path(type(logger))] = str(logger.version)
    if known:
        with whole_file(folder / _FILE, keeps_older=False) as temporary:
            records = [{"class": cls, "run": run} for cls, run in known.items()]
            temporary.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
