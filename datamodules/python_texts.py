"""Texts that every Python carries, which need no download: its reference documentation and its standard library."""

import platform
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

from datamodules.documents import Text
from datamodules.text import TextDataModule
from llp.errors import require

_FOLDERS_LEFT_OUT = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "__pycache__"}
)
_MADE_BY_THE_BUILD = ("_sysconfigdata", "config-")  # beginnings of the names of modules and folders


class PythonReference(TextDataModule):
    """The topics of `pydoc_data` (half a megabyte in Python 3.11): one document per topic.

    In the order of their names, the topics 1, 11, 21, ... are for validation, and 6, 16, 26, ... for the test. Topics
    share passages, so a paragraph of the test split is left out of the others, and one of the validation split is left
    out of training. The text is that of the running Python; `data_fingerprint` identifies it.

    Its arguments are those of `TextDataModule`; it takes no `path`.
    """

    name = "python_reference"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(path=None, **kwargs)

    def source(self) -> dict[str, object]:
        return {"python": platform.python_version()}

    def texts(self, split: str) -> Iterator[Text]:
        names = sorted(topics)
        members = {
            "test": names[5::10],
            "validation": names[::10],
            "train": [name for number, name in enumerate(names) if number % 5],
        }
        held_out = _held_out_of(
            split, lambda other: (part for name in members[other] for part in _paragraphs(topics[name]))
        )
        for name in members[split]:
            kept = [paragraph for paragraph in _paragraphs(topics[name]) if paragraph not in held_out]
            yield Text(name, [("\n\n".join(kept) + "\n").encode()])


class PythonSource(TextDataModule):
    """The standard library of the running Python (10 MB in Python 3.11): one document per file, named by its path.

    Left out are what others installed, tests and their data, `encodings` (tables, hardly any code), `pydoc_data` (the
    prose of `PythonReference`), what the build of this Python made, and files that are blank or not UTF-8.

    Packages are for training, with all of their files, so that no text that is held out has siblings there. Of the
    modules that are a single file, in the order of their names, 1, 6, 11, ... are for validation, and 3, 8, 13, ... for
    the test. A file is left out of the other splits if the test has the very same text, and out of training if
    validation has it. The text depends on the running Python; `data_fingerprint` identifies it.

    Its arguments are those of `TextDataModule`; it takes no `path`.

    Raises:
        SettingError: If this Python has no source of its standard library.
    """

    name = "python_source"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(path=None, **kwargs)

    def source(self) -> dict[str, object]:
        files = [file for split in self.splits for file in _files(split)]
        n_bytes = sum(file.stat().st_size for file in files)
        return {"python": platform.python_version(), "files": len(files), "bytes": n_bytes}

    def texts(self, split: str) -> Iterator[Text]:
        held_out = _held_out_of(split, lambda other: (text for _, text in _sources(other)))
        for name, text in _sources(split):
            if text not in held_out:
                yield Text(name, [text.encode()])


def _held_out_of(split: str, parts: Callable[[str], Iterator[str]]) -> set[str]:
    """The parts of the splits that a split must not share text with: of the test, and for training of validation."""
    others = {"test": (), "validation": ("test",), "train": ("test", "validation")}[split]
    return {part for other in others for part in parts(other)}


def _paragraphs(text: str) -> list[str]:
    return [paragraph for paragraph in text.strip("\n").split("\n\n") if paragraph.strip()]


def _sources(split: str) -> Iterator[tuple[str, str]]:
    """Name and text of the files of a split that aren't blank."""
    for file in _files(split):
        try:
            text = file.read_bytes().decode()
        except UnicodeDecodeError:
            continue
        if text.strip():
            yield file.relative_to(_folder()).as_posix(), text


def _files(split: str) -> list[Path]:
    """The files of a split in the order of their names; in training, those of packages come after the modules."""
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
    return Path(sysconfig.get_path("stdlib"))
