"""What a prepared folder says of itself: `about.json`, with the digests of the files beside it and one of its own."""

import json
from pathlib import Path
from typing import Any

from llp.atomic_files import KEY, file_sha256, file_sha256_once, json_with_digest, own_sha256
from llp.errors import SettingError

_READ = {"data_fingerprint": str, "tokenizer_fingerprint": str, "sha256": dict}
"""What is read of `about.json`; the rest says where the folder came from."""


def unusable(path: Path, reason: str = "is missing or damaged") -> SettingError:
    """The error for a file of a prepared folder that can't be used."""
    folder = path.parent
    remedy = f"{path} {reason}; remove {folder}, and the next run prepares it anew"
    return SettingError("data.init_args.cache_dir", folder.parent, remedy)


def write_about(folder: Path, about: dict[str, Any]) -> None:
    """Write `about.json`: the given entries, and the SHA-256 of each file in the folder and of all that it says."""
    digests = {path.name: file_sha256(path) for path in sorted(folder.iterdir()) if path.name != "about.json"}
    about = {**about, "sha256": digests}
    (folder / "about.json").write_text(json_with_digest(about), encoding="utf-8")


def read_about(folder: Path) -> dict[str, Any]:
    """What `about.json` says.

    Raises:
        SettingError: If it is missing or damaged.
    """
    path = folder / "about.json"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise unusable(path) from error
    if not isinstance(about, dict) or about.pop(KEY, None) != own_sha256(about):
        raise unusable(path)
    if not all(isinstance(about.get(name), kind) for name, kind in _READ.items()):
        raise unusable(path, "is of another version of this package")
    return about


def check_file(path: Path, about: dict[str, Any]) -> None:
    """Compare a file with the digest that its folder's `about.json` has of it. It is read once per process.

    Raises:
        SettingError: If it is not what was prepared.
    """
    try:
        digest = file_sha256_once(path)
    except OSError as error:
        raise unusable(path) from error
    if digest != about["sha256"].get(path.name):
        raise unusable(path, "is not what was prepared: its SHA-256 differs from that in about.json")
