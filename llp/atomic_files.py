"""Where a run's files lie, and how a file comes to be there: whole or not at all, an older one under a numbered name.

What is put in its place is synchronised first, the file or folder as well as the folder that holds it, so that a power
cut leaves the old one or the new one.


Small files state their own SHA-256, so that damage is noticed when they are read. One without it is accepted as it is:
it may come from elsewhere.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

EXPORT_RECORD = "llp.json"
"""The file by which a folder that `llp export` wrote is known."""
KEY = "own_sha256"
"""The name of the digest in an object of JSON."""
_HEAD = "# SHA-256 of the lines below: "


def is_exported(path: str | Path) -> bool:
    """Whether `llp export` wrote this folder."""
    return (Path(path) / EXPORT_RECORD).is_file()


def run_folder(path: str | Path) -> Path:
    """The folder of the run that wrote a checkpoint: the one above `checkpoints/`, else the checkpoint's own.

    An exported folder stands for itself.
    """
    if is_exported(path):
        return Path(path).resolve()
    parent = Path(path).resolve().parent
    return parent.parent if parent.name == "checkpoints" else parent


@contextmanager
def whole_file(path: Path, keeps_older: bool = True) -> Iterator[Path]:
    """A name to write a file under, which becomes `path` when the block ends, whole; after an error nothing is left.

    Args:
        path: Where the file shall be.
        keeps_older: Whether a file that is there already gets a numbered name, or is replaced.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with naming(path):
        try:
            yield temporary
            _synchronize_one(temporary)  # before an older one is moved: a full disk may show only here
            if keeps_older:
                keep_older(path)
            move_into_place(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """What the system refuses inside of the block, it refuses for `path`: a failed write names no file by itself."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def keep_older(path: Path) -> None:
    """Give a file that is there already a numbered name, so that another can take its place."""
    if path.exists():
        number = 1
        while (older := path.with_name(f"{path.stem}-{number}{path.suffix}")).exists():
            number += 1
        path.rename(older)


def unfinished(path: Path) -> Path:
    """Where a checkpoint is written before it is whole."""
    return path.with_name(f".{path.name}.unfinished")


def _replaced(path: Path) -> Path:
    """Where the older one is while another takes its place: a folder can't be replaced in one step."""
    return path.with_name(f".{path.name}.replaced")


def publish(path: Path) -> None:
    """Put the whole checkpoint that was written to `unfinished(path)`, a file or a folder, in its place."""
    if path.is_dir() or (path.exists() and unfinished(path).is_dir()):
        path.rename(_replaced(path))
    move_into_place(unfinished(path), path)
    _remove(_replaced(path))


def synchronize(path: Path) -> None:
    """Wait until a file, or a folder with all that it holds, is on the disk."""
    for entry in [*path.rglob("*"), path]:
        _synchronize_one(entry)


def _synchronize_one(path: Path) -> None:
    """Wait for the content of a file, or for the names in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def move_into_place(whole: Path, path: Path) -> None:
    """Give a whole file or folder the name `path`, which must be free unless both are files; a power cut loses none."""
    synchronize(whole)
    whole.replace(path)
    _synchronize_one(path.parent)


def link(path: Path, name: Path) -> None:
    """Make `name` a link to a checkpoint in the same folder, in one step."""
    _remove(unfinished(name))
    unfinished(name).symlink_to(path.name)
    unfinished(name).replace(name)


def tidy(folder: Path) -> None:
    """Remove what a killed process left unfinished in a run's `checkpoints/`; nothing that was ever whole is lost."""
    for replaced, path in _unreplaced(folder):
        replaced.rename(path)
    for leftover in chain(folder.glob(".*.replaced"), folder.glob(".*.unfinished")):
        _remove(leftover)


def wait_until_tidy(folder: Path) -> None:
    """Wait, in the other processes, until all checkpoints that `tidy` restores are in their places."""
    while _unreplaced(folder):
        time.sleep(0.1)


def _unreplaced(folder: Path) -> list[tuple[Path, Path]]:
    """Checkpoints that were moved aside for others which never came, and the places that they had."""
    pairs = [
        (replaced, folder / replaced.name.removeprefix(".").removesuffix(".replaced"))
        for replaced in folder.glob(".*.replaced")
    ]
    return [(replaced, path) for replaced, path in pairs if not path.exists()]


def discard(path: Path) -> None:
    """Remove the checkpoint that was to become `path`, and didn't."""
    _remove(unfinished(path))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def file_sha256(path: Path) -> str:
    """The digest of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_sha256_once(path: Path) -> str:
    """The digest of a file, which is read once per process as long as it has the same size and date."""
    stat = path.stat()
    return _file_sha256(path, stat.st_size, stat.st_mtime_ns)


@cache
def _file_sha256(path: Path, size: int, modified: int) -> str:
    return file_sha256(path)


def own_sha256(content: Any) -> str:
    """The digest of what an object of JSON says, however it is laid out."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def json_with_digest(content: dict[str, Any], sort_keys: bool = False) -> str:
    """An object as JSON, its digest last."""
    plain = json.loads(json.dumps(content, sort_keys=sort_keys))
    return json.dumps({**plain, KEY: own_sha256(plain)}, indent=1) + "\n"


def checked_json(text: str) -> dict[str, Any]:
    """The object in a text of JSON, without its digest.

    Raises:
        ValueError: If the text holds no object, or another one than was written.
    """
    content = json.loads(text)
    if not isinstance(content, dict):
        raise ValueError("it holds no object")
    digest = content.pop(KEY, None)
    if digest not in (None, own_sha256(content)):
        raise ValueError("its SHA-256 is another one")
    return content


def with_digest_line(text: str) -> str:
    """A text behind a line with its digest, which is a comment in YAML."""
    return f"{_HEAD}{hashlib.sha256(text.encode()).hexdigest()}\n{text}"


def checked_text(text: str) -> str:
    """A text as it is, if it is what its first line says, or that says nothing.

    Raises:
        ValueError: If it has changed.
    """
    head, _, rest = text.partition("\n")
    if head.startswith(_HEAD) and head.removeprefix(_HEAD) != hashlib.sha256(rest.encode()).hexdigest():
        raise ValueError("its SHA-256 is another one")
    return text
