"""Files and folders that are named after a split."""

import re
from pathlib import Path
from typing import NamedTuple

from llp.errors import SettingError

NAMES = {"train": ("train",), "validation": ("validation", "valid", "val", "dev"), "test": ("test",)}
_SHARD = re.compile(r"-\d+-of-\d+$")


class NamedSplit(NamedTuple):
    """What is named after a split, `valid/` or `test.txt`, and the files of text in it."""

    name: str
    files: list[Path]


def named_splits(folder: Path, files: list[Path]) -> dict[str, NamedSplit] | None:
    """The splits that a folder names, by subfolders, files or shards of files (`train-00000-of-00002.jsonl`).

    Args:
        folder: The folder.
        files: All files of text in it.

    Returns:
        All three splits; None: nothing is named after any.

    Raises:
        SettingError: If it names only some of them, or one twice, or a file belongs to none.
    """
    found: dict[str, dict[str, list[Path]]] = {split: {} for split in NAMES}
    loose = []
    for file in files:
        name, split = _name_and_split(file.relative_to(folder))
        if split is None:
            loose.append(file)
        else:
            found[split].setdefault(name, []).append(file)
    names = [name for split in NAMES for name in found[split]]
    if not names:
        return None
    remedy = _refusal(found, ", ".join(names), [str(file.relative_to(folder)) for file in loose])
    if remedy is not None:
        raise SettingError("data.init_args.path", folder, remedy)
    return {split: NamedSplit(name, files) for split in NAMES for name, files in found[split].items()}


def _name_and_split(file: Path) -> tuple[str, str | None]:
    """The subfolder that a file lies in, or its own name, and the split that this is a name of; None: of none."""
    if len(file.parts) > 1:
        name, bare = f"{file.parts[0]}/", file.parts[0]
    else:
        bare = _SHARD.sub("", file.stem)
        name = f"{bare}{'' if bare == file.stem else '-*'}{file.suffix}"
    return name, next((split for split in NAMES if bare.lower() in NAMES[split]), None)


def _refusal(found: dict[str, dict[str, list[Path]]], names: str, loose: list[str]) -> str | None:
    """Why these names can't be taken for the three splits, and what to do; None: they can."""
    for split, of_split in found.items():
        if len(of_split) > 1:
            return f"it has {len(of_split)} names for the {split} split ({', '.join(of_split)}); keep one of them in it"
    missing = " and ".join(" or ".join(NAMES[split]) for split in NAMES if not found[split])
    if missing:
        return f"it names only some of the splits ({names}); add {missing}, or rename the others to split by share"
    if loose:
        return f"{loose[0]} belongs to none of the splits ({names}); move it into one of them, or out of the folder"
    return None
