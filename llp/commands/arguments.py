"""What a parser gets: the configuration of the checkpoint's run, then configuration files, then flags.

A parser takes its defaults before it parses, and here they lie in the checkpoint that the arguments name. So the few
options that say which one it is are read first.
"""

from argparse import ArgumentError, ArgumentParser
from collections.abc import Collection
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from llp.atomic_files import tidy, wait_until_tidy
from llp.checkpoints import reading
from llp.commands.configurations import read_configuration
from llp.errors import SettingError, require
from llp.loading import chosen_checkpoint
from llp.training.run_lock import locked
from llp.training_module import TrainingModule


class Arguments:
    """The words behind a subcommand.

    Args:
        command: The subcommand.
        options: The words behind it.

    Attributes:
        ckpt_path: The checkpoint that they mean, if any.

    Raises:
        SettingError: If a configuration can't be read, or a checkpoint is needed and is not there.
    """

    def __init__(self, command: str, options: list[str]) -> None:
        parser = ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
        parser.add_argument("-c", "--config", action="append", default=[])
        for setting in ("ckpt_path", "name", "trainer.default_root_dir"):
            parser.add_argument(f"--{setting}")
        try:
            found, flags = parser.parse_known_args(options)
        except ArgumentError as error:
            raise SettingError("arguments", " ".join(options), str(error)) from error
        self.command, self.given = command, vars(found)
        self.settings = [read_configuration(value) for value in self.given.pop("config")]
        self.asked = None if command == "prepare" else self._value("ckpt_path")
        """The value of `ckpt_path` as it was given."""
        self.ckpt_path = None if self.asked in (None, "null") else self._checkpoint(self.asked)
        is_help = any(flag.startswith(("-h", "--help", "--print_config")) for flag in flags)
        remedy = f"`llp {command}` needs a trained model; name its checkpoint"
        scores_pretrained = (
            command in ("validate", "test", "predict") and self._value("model.class_path") == "llp.PretrainedModel"
        )
        needs_none = command in ("fit", "prepare") or scores_pretrained or is_help
        require(self.ckpt_path is not None or needs_none, "ckpt_path", None, remedy)
        self.given["ckpt_path"] = None if self.ckpt_path is None else str(self.ckpt_path)
        self.flags = [*(f"--{name}={value}" for name, value in self.given.items() if value is not None), *flags]

    def _value(self, setting: str) -> str | None:
        """The value of a setting among the flags, or else in the last file that has it."""
        for settings in [self.given, *reversed(self.settings)]:
            value: Any = settings.get(setting)
            if value is None and "." in setting:
                section, name = setting.split(".")
                value = (settings.get(section) or {}).get(name)
            if value is not None:
                return str(value)
        return None

    def _checkpoint(self, asked: str) -> Path | None:
        """The checkpoint that is meant by a run's folder, or by `last`, `best` or `auto` with the name of a run.

        `last` and `best` are the run's `last.ckpt` and `best.ckpt`. `auto` is the intact checkpoint with the most
        steps, or None, and then `llp fit` starts afresh. The run is the one with this name, or that of the SLURM job.
        A run's folder stands for its `last.ckpt` if it is trained further, else for its best.
        """
        path = Path(asked)
        if asked not in ("last", "best", "auto"):
            is_resumed = self.command == "fit" and (path / "checkpoints").is_dir()
            return path / "checkpoints/last.ckpt" if is_resumed else chosen_checkpoint(path)
        name = self._value("name") or slurm_job()
        require(name is not None, "ckpt_path", asked, "give the run's --name, too")
        folder = Path(self._value("trainer.default_root_dir") or ".", "lightning_logs", str(name), "checkpoints")
        if asked != "auto":
            return folder / f"{asked}.ckpt"
        if self.command == "fit":
            _tidy(folder)
        newest = next(reading.newest_first(folder), None)
        remedy = f"there is no intact checkpoint in {folder}"
        require(newest is not None or self.command == "fit", "ckpt_path", asked, remedy)
        return newest

    def words(self, sections: Collection[str] | None = None) -> list[str]:
        """What the parser gets: the configuration of the checkpoint's run, which files override, and then flags.

        Args:
            sections: Those of the configurations that count; None for all.
        """
        before = [] if sections == set() or self.ckpt_path is None else self._run_settings(self.ckpt_path)
        parts = [
            {name: value for name, value in settings.items() if sections is None or name in sections}
            for settings in [*before, *self.settings]
        ]
        files = [yaml.safe_dump(part, sort_keys=False, allow_unicode=True) for part in parts if part]
        return [*(word for file in files for word in ("--config", file)), *self.flags]

    def _run_settings(self, ckpt_path: Path) -> list[dict[str, Any]]:
        """The configuration that the checkpoint holds, if it was trained by `llp fit`."""
        checkpoint = reading.read(ckpt_path)
        reading.import_class(checkpoint["architecture"], TrainingModule)  # its message says what to do if that fails
        remedy = "it was not trained by `llp fit` and holds no configuration; name one with --config"
        require(checkpoint["config"] is not None or self.settings != [], "ckpt_path", ckpt_path, remedy)
        if checkpoint["config"] is None:
            return []
        settings = read_configuration(checkpoint["config"])
        if self.command != "fit":
            settings["trainer"].pop("logger", None)  # trackers are for training: no other command opens a run in one
        return [settings]


def _tidy(folder: Path) -> None:
    """Restore what a killed process left half replaced in a run's `checkpoints/`."""
    if rank_zero_only.rank != 0:  # type: ignore[attr-defined]
        wait_until_tidy(folder)
    elif folder.is_dir():
        with locked(folder.parent):  # what another process is writing is not a leftover
            tidy(folder)


def slurm_job() -> str | None:
    """The number of the SLURM job that this is a task of, which names its run; None outside of a job."""
    job = SLURMEnvironment.job_id()
    return None if job is None else str(job)
