"""Which checkpoint a command line means, and the configuration of its run: both before anything is parsed."""

from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.plugins.environments import SLURMEnvironment

from llp.atomic_files import tidy, wait_until_tidy
from llp.checkpoints import reading
from llp.commands.configurations import configurations, read_configuration, values_of
from llp.commands.messages import is_rank_zero
from llp.errors import require
from llp.loading import chosen_checkpoint
from llp.training.run_lock import locked


def with_run_defaults(subcommand: str, arguments: list[str]) -> list[str]:
    """The arguments behind the configuration of the run whose checkpoint they name, which they then override.

    It is the one that lies in the checkpoint itself, so that it is what the checkpoint was trained with, wherever the
    file lies.

    Raises:
        SettingError: If a checkpoint is needed and none is named, or it can't be opened, or nothing says what was run.
    """
    path = last_value("ckpt_path", arguments)
    has_config = len(configurations(arguments)) > 0
    if path is None:
        remedy = f"`llp {subcommand}` needs a trained model; name its checkpoint"
        require(subcommand == "fit" or has_config, "ckpt_path", None, remedy)
        return arguments
    config = reading.read(path)["config"]
    remedy = "it was not trained by `llp fit`, and holds no configuration; name one with --config"
    require(config is not None or has_config, "ckpt_path", path, remedy)
    if config is None:
        return arguments
    return ["--config", config if subcommand == "fit" else _without_loggers(config), *arguments]


def _without_loggers(config: str) -> str:
    """A run's configuration without its trackers, which are for training: their packages may not be installed here."""
    settings = read_configuration(config)
    if not isinstance(settings["trainer"].get("logger"), dict | list):
        return config
    settings["trainer"]["logger"] = None
    return yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)


def named_checkpoint(subcommand: str, arguments: list[str]) -> list[str]:
    """The arguments with the path of a checkpoint in place of a run's folder, or of `last`, `best` or `auto`.

    `last` and `best` are the run's `last.ckpt` and `best.ckpt`. `auto` is its furthest trained whole checkpoint, or
    none: then `llp fit` starts afresh. The run is the one that `--name` names, or the SLURM job. A run's folder stands
    for its `last.ckpt` where it is trained on, else for its best.

    Raises:
        SettingError: If the run has no name, or no such checkpoint.
    """
    word = last_value("ckpt_path", arguments)
    if word is not None and (Path(word) / "checkpoints").is_dir():
        chosen = Path(word) / "checkpoints/last.ckpt" if subcommand == "fit" else chosen_checkpoint(Path(word))
        return [*arguments, "--ckpt_path", str(chosen)]
    if word not in ("last", "best", "auto"):
        return arguments
    name = last_value("name", arguments) or slurm_job()
    require(name is not None, "ckpt_path", word, "it needs to know of which run; give --name")
    folder = Path(last_value("trainer.default_root_dir", arguments) or ".") / f"lightning_logs/{name}/checkpoints"
    if word in ("last", "best"):
        return [*arguments, "--ckpt_path", str(folder / f"{word}.ckpt")]
    if subcommand == "fit":
        if not is_rank_zero():
            wait_until_tidy(folder)
        elif folder.is_dir():
            with locked(folder.parent):  # what another process is writing is not unfinished
                tidy(folder)
    path = next(reading.newest_first(folder), None)
    remedy = f"there is no whole checkpoint in {folder}"
    require(path is not None or subcommand == "fit", "ckpt_path", word, remedy)
    return [*arguments, "--ckpt_path", "null" if path is None else str(path)]


def last_value(setting: str, arguments: list[str]) -> str | None:
    """The value that a setting has on the command line, in a flag or else in a file; None: it has none."""
    for value in reversed([*values_of(f"--{setting}", arguments)]):
        return None if value == "null" else value
    for path in reversed(configurations(arguments)):
        settings: Any = read_configuration(path)
        for key in setting.split("."):
            settings = settings.get(key) if isinstance(settings, dict) else None
        if settings is not None:
            return str(settings)
    return None


def slurm_job() -> str | None:
    """The number of the SLURM job that this is a task of, which names its run; None: it is none."""
    job = SLURMEnvironment.job_id()
    return None if job is None else str(job)
