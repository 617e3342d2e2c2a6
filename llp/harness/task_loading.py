"""The tasks that a command line names: this project's own, those of the user's files, and the harness's."""

import random
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED
from lm_eval.tasks import TaskManager

from llp.errors import SettingError, require

OWN_TASKS = Path(__file__).parent / "tasks"


def load_tasks(
    names: list[str], write_documents: Callable[[], Path], include_path: str | None, n_shots: int | None
) -> dict[str, Any]:
    """The tasks of these names, which may be groups, tags or YAML files, as `lm_eval.evaluate` takes them.

    The harness's own fourteen thousand files are looked through only if a name is none of the others'.

    Args:
        names: Of the tasks.
        write_documents: Writes the documents that this project's own tasks are made from, and returns the .jsonl file;
            called if there is one among the tasks.
        include_path: A folder with YAML files of tasks.
        n_shots: How many solved examples stand before each; None: as many as the task says.

    Raises:
        SettingError: If there is no such task, or it can't be had here.
    """
    require(len(names) > 0, "tasks", "", "name some, with commas between them")
    folder = None if include_path is None else Path(include_path).expanduser()
    is_folder = folder is None or folder.is_dir()
    require(is_folder, "include_path", include_path, "there is no such folder; name that of the tasks' files")
    paths = [OWN_TASKS, *([] if folder is None else [folder])]
    metadata = {"documents": ""}  # not empty, or the harness takes another in its place; filled in below
    manager = TaskManager(include_path=paths, include_defaults=False, metadata=metadata)
    if not all(_is_known(name, manager) for name in names):
        manager = TaskManager(include_path=paths, metadata=metadata)
    for name in names:
        _require_known(name, manager)
    if any(_is_own(name, manager) for name in names):
        metadata["documents"] = str(write_documents())
    random.seed(DEFAULT_RANDOM_SEED)  # as the harness's command line does: some tasks draw
    np.random.seed(DEFAULT_OTHER_SEED)
    loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
    for name in names:
        for kind, found in _load(manager, name).items():
            loaded[kind] |= found
    for name, task in loaded["tasks"].items():
        _require_usable(name, task)
        if n_shots is not None and task.get_config("num_fewshot") != 0:  # 0 is a task's own word
            task.set_config(key="num_fewshot", value=n_shots)
        elif task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=DEFAULT_OTHER_SEED)
    return loaded


def _is_known(name: str, manager: TaskManager) -> bool:
    return name in manager.task_index or (Path(name).suffix == ".yaml" and Path(name).is_file())


def _require_known(name: str, manager: TaskManager) -> None:
    close = get_close_matches(name, manager.all_tasks, n=3)
    hint = f"; did you mean {' or '.join(close)}?" if close else ""
    own = ", ".join(sorted(path.stem for path in OWN_TASKS.glob("*.yaml")))
    remedy = f"there is no such task: neither here ({own}) nor in --include_path nor in the harness{hint}"
    require(_is_known(name, manager), "tasks", name, remedy)


def _is_own(name: str, manager: TaskManager) -> bool:
    entry = manager.task_index.get(name)
    return entry is not None and entry.yaml_path is not None and entry.yaml_path.parent == OWN_TASKS


def _load(manager: TaskManager, name: str) -> Any:
    """A task with its data; whatever a task's file or code raises is what its user can mend."""
    try:
        return manager.load([name])
    except SettingError:
        raise
    except ConnectionError as error:
        remedy = f"its data come from the network ({_first_line(error)}); name a task whose data lie here"
        raise SettingError("tasks", name, remedy) from error
    except ImportError as error:
        raise SettingError("tasks", name, f"it needs another package: {_first_line(error)}; install it") from error
    except Exception as error:
        reason = f"{type(error).__name__}: {_first_line(error)}"
        raise SettingError("tasks", name, f"it can't be loaded ({reason}); mend its file, or name another") from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _require_usable(name: str, task: Any) -> None:
    is_safe = not getattr(task, "UNSAFE_CODE", False)
    require(is_safe, "tasks", name, "it runs what the model writes as a program; leave it out")
    require(len(task.eval_docs) > 0, "tasks", name, "it has no examples; mend its data, or leave it out")
