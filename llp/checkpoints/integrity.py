"""Whether a checkpoint is what was written: of each part a checksum, which is compared before it is used."""

from functools import cache
from pathlib import Path
from zipfile import ZipFile

from llp.atomic_files import file_sha256, file_sha256_once

_DIGEST = ".sha256"  # beside each file of a sharded checkpoint


def require_whole(path: Path) -> None:
    """Raise an error of any kind unless a checkpoint is what was written; a file is read for it once per process."""
    if not path.is_dir():
        stat = path.stat()
        _check_archive(path, stat.st_size, stat.st_mtime_ns)
        return
    covered = {digest.with_suffix("") for digest in path.glob(f"*{_DIGEST}")}
    if covered and not {*path.glob("*.distcp"), path / ".metadata", path / "meta.pt"} <= covered:
        raise ValueError("the digest of one of its files is missing")
    for file in covered:
        if file_sha256_once(file) != file.with_name(file.name + _DIGEST).read_text():
            raise ValueError(f"{file.name} is not what was written")


@cache
def _check_archive(file: Path, size: int, modified: int) -> None:
    """Compare a file of torch with the CRC-32 that it holds of each of its parts, which torch itself doesn't."""
    with ZipFile(file) as archive:
        if (part := archive.testzip()) is not None:
            raise ValueError(f"{part} is not what was written")


def write_digests(folder: Path, rank: int) -> None:
    """Write the SHA-256 of each file of a sharded checkpoint that this process has written, beside it."""
    own = [*folder.glob(f"__{rank}_*.distcp")]
    if rank == 0:
        own += [folder / ".metadata", folder / "meta.pt"]
    for file in own:
        file.with_name(file.name + _DIGEST).write_text(file_sha256(file))
