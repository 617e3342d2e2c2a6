"""The source of Python's standard library: code, which every Python carries, so that not all text is prose."""

import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datamodules.documents import Text
from datamodules.text import TextDataModule
from llp.errors import require

_FOLDERS_LEFT_OUT = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "__pycache__"}
)
_MADE_BY_THE_BUILD = ("_sysconfigdata", "config-")  # the names of modules and folders begin so


class PythonSource(TextDataModule):
    """The standard library of the Python that runs (10 MB in Python 3.11): one document per file, named by its path.

    Left out are what others installed, tests and their data, `encodings` (tables, hardly any code), `pydoc_data` (the
    prose of `PythonReference`), what the build of this Python made, and files that are blank or not UTF-8.

    Packages are for training, with all of their files: so a text that is held out has no siblings there. Of the modules
    that are a single file, in the order of their names, 1, 6, 11, ... are for validation, and 3, 8, 13, ... for the
    test. A file is left out of the other splits if the test has the very same text, and out of training if validation
    has it. The text depends on the Python that runs; `data_fingerprint` tells which it was.

    Its arguments are those of `TextDataModule`; it takes no `path`.

    Raises:
        SettingError: If this Python has no source of its standard library.
    """

    name = "python_source"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(path=None, **kwargs)

    def source(self) -> dict[str, Any]:
        files = [file for split in self.splits for file in _files(split)]
        n_bytes = sum(file.stat().st_size for file in files)
        return {"python": platform.python_version(), "files": len(files), "bytes": n_bytes}

    def texts(self, split: str) -> Iterator[Text]:
        held_out: set[str] = set()
        for held_out_split in ("test", "validation"):
            if held_out_split == split:
                break
            held_out.update(text for _, text in _texts(held_out_split))
        for name, text in _texts(split):
            if text not in held_out:
                yield Text(name, [text.encode()])


def _texts(split: str) -> Iterator[tuple[str, str]]:
    """Name and text of each file of a split that holds any."""
    for file in _files(split):
        try:
            text = file.read_bytes().decode()
        except UnicodeDecodeError:
            continue
        if text.strip():
            yield file.relative_to(_folder()).as_posix(), text


def _files(split: str) -> list[Path]:
    """The files of a split in the order of their names, in training those of packages after all others."""
    folder = _folder()
    entries = [entry for entry in sorted(folder.glob("*")) if not entry.name.startswith(_MADE_BY_THE_BUILD)]
    modules = [entry for entry in entries if entry.suffix == ".py"]
    remedy = f"there is no source of the standard library in {folder}; run another Python, or name other data"
    require(len(modules) >= 3, "data", PythonSource.name, remedy)
    if split == "validation":
        return modules[::5]
    if split == "test":
        return modules[2::5]
    packages = [entry for entry in entries if entry.name not in _FOLDERS_LEFT_OUT]  # the largest are not walked through
    in_packages = [file for package in packages for file in sorted(package.rglob("*.py"))]
    return [
        *(module for number, module in enumerate(modules) if number % 5 not in (0, 2)),
        *(file for file in in_packages if _FOLDERS_LEFT_OUT.isdisjoint(file.relative_to(folder).parts)),
    ]


def _folder() -> Path:
    """Where the standard library lies."""
    return Path(sysconfig.get_path("stdlib"))
