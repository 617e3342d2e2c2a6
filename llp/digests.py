"""SHA-256 of files, and small files that say their own, so that damage is noticed where they are read.

A small file without one is taken as it is: it may come from elsewhere.
"""

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

KEY = "own_sha256"
"""The name of the digest in an object of JSON."""
_HEAD = "# SHA-256 of the lines below: "


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
