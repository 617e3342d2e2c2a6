"""Files of a run: where they lie, and how each appears whole or not at all.

What takes its place is synchronised with the disk first, and so is the folder that holds it: a power cut leaves the
old file or the new one. Small files state their own SHA-256, so that damage is noticed when they are read; one without
it is accepted as it is.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

EXPORT_RECORD = "llp.json"
"""The file that marks a folder which `llp export` wrote."""
KEY = "own_sha256"
"""The name of the digest in a JSON object."""


def is_exported(path: str | Path) -> bool:
    """Whether `llp export` wrote this folder."""
    return (Path(path) / EXPORT_RECORD).is_file()


def run_folder(path: str | Path) -> Path:
    """The folder of the run that wrote a checkpoint: the one above `checkpoints/`, otherwise the checkpoint's own.

    An exported folder is its own.
    """
    if is_exported(path):
        return Path(path).resolve()
    parent = Path(path).resolve().parent
    return parent.parent if parent.name == "checkpoints" else parent


# One file


@contextmanager
def whole_file(path: Path, keeps_older: bool = True) -> Iterator[Path]:
    """A temporary name for a file, which becomes `path` when the block ends; after an error nothing is left of it.

    Args:
        path: Where the file is to be.
        keeps_older: Whether an existing file gets a numbered name (`test-1.json`), or is replaced.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with naming(path):
        try:
            yield temporary
            _synchronize(temporary)  # before an older one is moved: a full disk may show only here
            if keeps_older:
                keep_older(path)
            move_into_place(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


def write_whole(path: Path, text: str, keeps_older: bool = False) -> None:
    """Write a text as a `whole_file`, and its folder if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with whole_file(path, keeps_older) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name `path` in what the system refuses inside the block, because a failed write names no file."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def keep_older(path: Path) -> None:
    """Give an existing file a numbered name, so that another can take its place."""
    if path.exists():
        number = 1
        while (older := path.with_name(f"{path.stem}-{number}{path.suffix}")).exists():
            number += 1
        path.rename(older)


def move_into_place(whole: Path, path: Path) -> None:
    """Give a whole file or folder the name `path`, which must be free unless both are files."""
    for entry in [*whole.rglob("*"), whole]:
        _synchronize(entry)
    whole.replace(path)
    _synchronize(path.parent)


def _synchronize(path: Path) -> None:
    """Wait until the content of a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Checkpoints, which are files or folders


def unfinished(path: Path) -> Path:
    """Where a checkpoint is written before it is whole."""
    return path.with_name(f".{path.name}.unfinished")


def _replaced(path: Path) -> Path:
    """Where the older one is while another takes its place: a folder can't be replaced in one step."""
    return path.with_name(f".{path.name}.replaced")


def publish(path: Path) -> None:
    """Put the whole checkpoint at `unfinished(path)` in its place."""
    if path.is_dir() or (path.exists() and unfinished(path).is_dir()):
        path.rename(_replaced(path))
    move_into_place(unfinished(path), path)
    _remove(_replaced(path))


def discard(path: Path) -> None:
    """Remove the unfinished checkpoint of `path`."""
    _remove(unfinished(path))


@contextmanager
def whole_checkpoint(path: Path) -> Iterator[Path]:
    """Where one process writes a checkpoint or folder, which becomes `path` when the block ends; see `whole_file`."""
    discard(path)  # left by a killed process
    try:
        yield unfinished(path)
        publish(path)
    except BaseException:
        discard(path)
        raise


def link(path: Path, name: Path) -> None:
    """Make `name` a link to a checkpoint in the same folder, in one step."""
    discard(name)
    unfinished(name).symlink_to(path.name)
    unfinished(name).replace(name)


def tidy(folder: Path) -> None:
    """Remove what a killed process left unfinished in a folder of checkpoints; what was ever whole is not lost."""
    for replaced, path in _unreplaced(folder):
        replaced.rename(path)
    for leftover in [*folder.glob(".*.replaced"), *folder.glob(".*.unfinished")]:
        _remove(leftover)


def wait_until_tidy(folder: Path) -> None:
    """Wait, in the other processes, until all checkpoints that `tidy` restores are in their places."""
    while _unreplaced(folder):
        time.sleep(0.1)


def _unreplaced(folder: Path) -> list[tuple[Path, Path]]:
    """Checkpoints that were moved aside for others which never came, and the places that they had."""
    pairs = [(path, folder / path.name[1:].removesuffix(".replaced")) for path in folder.glob(".*.replaced")]
    return [(replaced, path) for replaced, path in pairs if not path.exists()]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


# Digests


def file_sha256(*paths: Path) -> str:
    """The digest of the bytes of a file, or of several files one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as stream:
            hashlib.file_digest(stream, lambda: digest)
    return digest.hexdigest()


def file_sha256_once(path: Path) -> str:
    """The digest of a file, which is read once per process as long as its size and date stay the same."""
    stat = path.stat()
    return _file_sha256(path, stat.st_size, stat.st_mtime_ns)


@cache
def _file_sha256(path: Path, size: int, modified: int) -> str:
    return file_sha256(path)


def own_sha256(content: Any) -> str:
    """The digest of the content of a JSON object, however it is laid out."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def json_with_digest(content: dict[str, Any], sort_keys: bool = False) -> str:
    """An object as JSON, with its digest as the last item."""
    plain = json.loads(json.dumps(content, sort_keys=sort_keys))
    return json.dumps({**plain, KEY: own_sha256(plain)}, indent=1) + "\n"


def checked_json(text: str) -> dict[str, Any]:
    """The object in a JSON text, without its digest.

    Raises:
        ValueError: If the text holds no object, or was changed.
    """
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError("it holds no object")
    digest = content.pop(KEY, None)
    if digest not in (None, own_sha256(content)):
        raise ValueError("its SHA-256 is another one")
    return content
