"""One process at a time trains in a run's folder."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llp.errors import SettingError


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a run's folder, which is made if it is not there.

    The kernel holds the lock on the folder itself, for this process: no file can stay behind, and a process that is
    killed has let go of it.

    Raises:
        SettingError: If another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)  # closed in the processes that this one starts
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            remedy = f"another process is training in {folder}; wait until it has ended, or choose another name"
            raise SettingError("name", folder.name, remedy) from error
        except OSError:
            pass  # some network file systems have no such locks: there a run does without
        yield
    finally:
        os.close(descriptor)
