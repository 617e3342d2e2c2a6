"""One process at a time trains in a run's folder.

Apart from `run_record`, so that `llp runs` can ask for the lock without importing torch.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llp.errors import SettingError


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a run's folder, which is created if it does not exist.

    The kernel holds the lock on the folder itself for this process, so that no file is left behind and a killed process
    releases it.

    Raises:
        SettingError: If another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)  # closed in the processes that this one starts
    try:
        if not _lock(descriptor, fcntl.LOCK_EX):
            remedy = f"another process is training in {folder}; wait until it has ended, or choose another name"
            raise SettingError("name", folder.name, remedy)
        yield
    finally:
        os.close(descriptor)


def is_held(folder: Path) -> bool:
    """Whether a process is training in a run's folder, as far as this machine can know."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        return not _lock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, kind: int) -> bool:
    """Take a lock unless another process holds it; some network file systems have no locks, and need none here."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True
