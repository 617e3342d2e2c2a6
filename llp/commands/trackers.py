"""The loggers that a configuration names beside the run's TensorBoard: Weights & Biases, MLflow, Comet, CSV, others.

They are opened on one process, after all checks of the settings and before the text is read: what they refuse or wait
for comes before any long work.
"""

import inspect
import json
import os
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch.loggers import (
    CometLogger,
    CSVLogger,
    Logger,
    MLFlowLogger,
    TensorBoardLogger,
    WandbLogger,
)
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng

from llp.atomic_files import keep_older, whole_file
from llp.commands.parser import Parser
from llp.errors import SettingError, require


@dataclass(frozen=True)
class _Known:
    """What a logger calls the things that they all have.

    Args:
        name: The argument that names the run.
        run: The argument for the identifier of a run to go on with; None: there is no such thing.
        package: What is to be installed, and the module in it; None: nothing.
    """

    name: str
    run: str | None = None
    package: tuple[str, str] | None = None


_KNOWN: dict[type[Logger], _Known] = {
    WandbLogger: _Known("name", "id", ("wandb", "wandb")),
    MLFlowLogger: _Known("run_name", "run_id", ("mlflow", "mlflow")),
    CometLogger: _Known("name", "experiment_key", ("comet-ml", "comet_ml")),
    CSVLogger: _Known("version"),
    TensorBoardLogger: _Known("version"),
}

_FILE = "trackers.json"


def configured(loggers: Any) -> list[Namespace]:
    """The loggers that the setting `trainer.logger` names, as they are configured: one, several or none."""
    return [*loggers] if isinstance(loggers, list) else [loggers] if isinstance(loggers, Namespace) else []


def class_of(logger: Namespace) -> type[Logger]:
    """The class of a configured logger."""
    module, _, name = logger.class_path.rpartition(".")
    cls: type[Logger] = getattr(import_module(module), name)
    return cls


def _known(logger: Namespace) -> _Known | None:
    cls = class_of(logger)
    return next((known for base, known in _KNOWN.items() if issubclass(cls, base)), None)


def is_tensorboard(logger: Namespace) -> bool:
    """Whether a configured logger is TensorBoard's, whose folder is the run's."""
    return issubclass(class_of(logger), TensorBoardLogger)


def require_packages(loggers: Iterable[Namespace]) -> None:
    """Raise a `SettingError` if the package of a logger is not installed, before any long work."""
    for logger in loggers:
        known = _known(logger)
        if known is not None and known.package is not None:
            package, module = known.package
            remedy = f"the package {package} is not installed; run: pip install {package}"
            require(find_spec(module) is not None, "trainer.logger", class_of(logger).__name__, remedy)


def named(logger: Namespace, name: str | None) -> Namespace:
    """A configured logger with the run's name, unless it has one of its own."""
    known = _known(logger)
    return logger if known is None or name is None else _with(logger, known.name, name)


def _with(logger: Namespace, argument: str, value: Any) -> Namespace:
    """A configured logger with a value for an argument that has none."""
    logger = logger.clone()
    more = logger.get("dict_kwargs") or {}
    if argument in logger.init_args:  # an argument that its parser knows of
        logger.init_args[argument] = value if logger.init_args[argument] is None else logger.init_args[argument]
    else:
        logger.dict_kwargs = {argument: value, **more}
    return logger


def without_defaults(logger: Namespace) -> Namespace:
    """A configured logger without the arguments that it has anyway.

    The parser adds all that the installed version of the tracker's package takes; the next version may not.
    """
    logger = logger.clone()
    parameters = inspect.signature(class_of(logger)).parameters
    for argument, value in logger.get("init_args", Namespace()).clone().items():
        own = parameters.get(argument)
        if value == (None if own is None else own.default):
            del logger.init_args[argument]
    return logger


def open_trackers(loggers: Iterable[Namespace], folder: Path) -> list[Logger]:
    """Build loggers, open their runs, and keep these from ending the training.

    A run that goes on in its folder also goes on in its trackers: their runs are kept in `trackers.json` there.

    Args:
        loggers: As configured.
        folder: The run's.

    Raises:
        SettingError: If one can't be opened.
    """
    path, opened, records = folder / _FILE, [], []
    earlier = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    for logger in loggers:
        known, remedy = _known(logger), ""
        before = next((record for record in earlier if record["class"] == logger.class_path), None)
        if known is not None and known.run is not None and before is not None:
            earlier.remove(before)
            logger = _with(logger, known.run, before["run"])
            remedy = f", or remove {os.path.relpath(path)} to open another run there"
        built = _open(_in_place(logger, folder), remedy)
        opened.append(built)
        if known is not None and known.run is not None:
            records.append({"class": logger.class_path, "run": str(built.version)})
            with whole_file(path, keeps_older=False) as temporary:
                temporary.write_text(json.dumps([*records, *earlier], indent=1) + "\n", encoding="utf-8")
        FailureIsolation(built)
    return opened


def _in_place(logger: Namespace, folder: Path) -> Namespace:
    """A configured logger with the run's name; a CSVLogger without a place of its own writes into the run's folder."""
    cls, own = class_of(logger), logger.init_args
    if issubclass(cls, CSVLogger) and (own.save_dir, own.name, own.version) == (".", "lightning_logs", None):
        logger = logger.clone()
        logger.init_args.save_dir, logger.init_args.name = str(folder.parent.parent), folder.parent.name
    return named(logger, folder.name)


def _open(logger: Namespace, remedy: str) -> Logger:
    """Build a logger, and open its run: what it waits for, or refuses, comes before training does."""
    cls = class_of(logger)
    if issubclass(cls, WandbLogger):  # which else takes the parser's None for "never go on with a run"
        logger = _with(logger, "resume", "allow")
    if issubclass(cls, CometLogger) and logger.init_args.get("online") is False:
        os.environ["COMET_START_ONLINE"] = "false"  # Lightning's own argument for it stores nothing at all (#21617)
        logger = logger.clone()
        logger.init_args.online = None
    parser = Parser(prog="llp fit")
    parser.add_argument("--logger", type=Logger)
    try:
        with isolate_rng(include_cuda=False):
            random.seed()  # Comet draws the name of an archive, which the run's seed would draw again for the next one
            built: Any = parser.instantiate(Namespace(logger=logger)).logger
            if isinstance(built, CSVLogger):
                keep_older(Path(built.log_dir) / "metrics.csv")  # Lightning would remove it
            _ = built.experiment
    except Exception as error:
        cause = " ".join(str(error).split()).rstrip(".")
        go_on = f"mend this{remedy}, or train without it: --trainer.logger true"
        raise SettingError("trainer.logger", cls.__name__, f"it can't be opened: {cause}; {go_on}") from error
    return built


class FailureIsolation:
    """Lets training go on when a tracker fails: it is left alone from then on, after a word about it.

    The methods that Lightning calls are replaced on the logger itself, so that it stays what it is for callbacks.
    """

    def __init__(self, logger: Logger) -> None:
        self.name = type(logger).__name__
        self.is_lost = False
        for method in ("log_metrics", "log_graph", "save", "after_save_checkpoint", "finalize"):
            setattr(logger, method, partial(self._call, getattr(logger, method)))
        # MLflow, for one, refuses another value of a parameter on a resume, and takes figures all the same.
        setattr(logger, "log_hyperparams", partial(self._try, "doesn't take these settings", logger.log_hyperparams))  # noqa: B010

    def _call(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        lost = "has failed and gets no more figures; training goes on, and the run's folder has them all"
        self.is_lost = self.is_lost or not self._try(lost, method, *args, **kwargs)

    def _try(self, otherwise: str, method: Callable[..., Any], *args: Any, **kwargs: Any) -> bool:
        """Call a method, and say what comes of it if it fails; whether it went well."""
        try:
            method(*args, **kwargs)
        except Exception as error:
            rank_zero_warn(f"{self.name} {otherwise}: {' '.join(str(error).split())}")
            return False
        return True
