"""What the command line says about errors, and what it leaves out."""

import errno
import logging
import os
import re
import threading
import warnings

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.distributed import DistError

from llp.errors import SettingError
from llp.training.guards import out_of_memory

_NOISE = re.compile(
    r"💡|[GT]PU av|LOCAL_RANK|You are using a CUDA|Using |Seed set|\[rank: |Restor|`Trainer.fit` stopped"
)
"""How Lightning's notices begin that repeat what the first and the last screen of a run say, or advertise."""
_IGNORED = (
    "LightningCLI's args parameter",  # they are those of the command line
    "The dirpath has changed",  # a test has no checkpoint folder
    ".*your dataloader is not resumable",  # its state is the data module's
    "Checkpoint directory .* exists",  # a resumed run's own
    "Experiment logs directory .* exists",  # an older file is kept
    "The `srun` command is available",  # docs/slurm.md says when it is needed
    ".*LeafSpec.*",
)
"""Warnings that are wrong here, as regular expressions."""


def silence() -> None:
    """Leave out what tells the user of this command line nothing; a warning is one line."""
    threading.excepthook = _thread_error
    warnings.formatwarning = lambda message, *_, **__: f"llp: warning: {' '.join(str(message).split())}\n"
    for message in _IGNORED:
        warnings.filterwarnings("ignore", message=message)
    for name in ("pytorch.utilities.rank_zero", "pytorch.accelerators.cuda", "fabric.utilities.seed"):
        logging.getLogger(f"lightning.{name}").addFilter(lambda record: not _NOISE.match(record.getMessage()))


def _thread_error(arguments: threading.ExceptHookArgs) -> None:
    """Leave out what TensorBoard's thread can't write: the next metric that is logged raises it once more."""
    if not (isinstance(arguments.exc_value, OSError) and "AsyncWriter" in type(arguments.thread).__name__):
        threading.__excepthook__(arguments)


def users_error(error: BaseException | None) -> BaseException | None:
    """An error that the user can fix, if an exception is one or was raised from one.

    These are `SettingError` (jsonargparse wraps what a constructor raises), Lightning's errors about its own settings
    and about packages that are missing, files that can't be read or written, and too little memory.
    """
    if short := out_of_memory(error):
        return short
    if isinstance(error, RuntimeError) and str(error).startswith("Early stopping conditioned on metric"):
        return MisconfigurationException(f"trainer.callbacks: {error}")  # it has no type of its own
    while error is not None and not _is_users(error):
        error = error.__cause__
    return error


def _is_users(error: BaseException) -> bool:
    # Lightning says which package to install; where an import fails, Python names the module.
    is_advice = isinstance(error, ModuleNotFoundError) and error.name is None
    return is_advice or isinstance(error, SettingError | MisconfigurationException | OSError)


def in_words(error: BaseException) -> str:
    """A user's error as it is shown: what the system refused, for which file, and what helps."""
    if not isinstance(error, OSError) or error.errno not in _REMEDIES:
        return str(error)
    file = os.fsdecode(error.filename) if isinstance(error.filename, bytes) else error.filename  # TensorBoard's are
    return f"{file or 'a file'}: {error.strerror}; {_REMEDIES[error.errno]}"


_ROOM = "make room there, or write elsewhere: trainer.default_root_dir for runs, data.init_args.cache_dir for text"
_RIGHTS = "allow this user to, or use another folder: trainer.default_root_dir for runs"
_IN_THE_WAY = "a file is where a folder should be; move it, or choose another name or folder"
_REMEDIES = {
    **dict.fromkeys((errno.ENOTDIR, errno.EEXIST), _IN_THE_WAY),
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), _ROOM),
    **dict.fromkeys((errno.EACCES, errno.EPERM, errno.EROFS), _RIGHTS),
}


def is_lost_contact(error: Exception) -> bool:
    """Whether a collective failed because a process at its other end is gone; gloo has no type of error for it."""
    return isinstance(error, DistError) or re.search("Connection (closed|reset) by peer", str(error)) is not None
