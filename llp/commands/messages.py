"""What the command line says, and leaves out."""

import errno
import logging
import os
import re
import threading
import warnings

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch.distributed import DistError

from llp.errors import SettingError
from llp.training.guards import out_of_memory

_NOISE = re.compile(
    r"💡|[GTH]PU available: |LOCAL_RANK: |You are using a CUDA device|Using .* Automatic Mixed Precision|"
    r"(\[rank: \d+\] )?Seed set to |Restor(ing|ed) |`Trainer.fit` stopped: `max_(steps|epochs)="
)
"""Lightning's notices of what the first and the last screen of a run say, and its advice for other programs."""


def users_error(error: BaseException | None) -> BaseException | None:
    """What the user can mend, if an exception is that or was raised from it.

    That is our own `SettingError` (jsonargparse wraps what a constructor raises), Lightning's word for settings of its
    own that can't be used or for packages that it lacks, files that can't be read or written, and memory that is not
    enough.
    """
    if short := out_of_memory(error):
        return short
    if isinstance(error, RuntimeError) and str(error).startswith("Early stopping conditioned on metric"):
        return MisconfigurationException(f"trainer.callbacks: {error}")  # of no type of Lightning's own
    while error is not None and not _is_users(error):
        error = error.__cause__
    return error


def _is_users(error: BaseException) -> bool:
    # Lightning says which package to install; where an import fails, Python names the module.
    is_advice = isinstance(error, ModuleNotFoundError) and error.name is None
    return is_advice or isinstance(error, SettingError | MisconfigurationException | OSError)


def lightnings_refusal(error: ValueError) -> MisconfigurationException | None:
    """What a class of Lightning's that a configuration names has said of its arguments; None: it is another error.

    jsonargparse wraps it, where the setting can have other types too, in a list of all that it has tried.
    """
    given = re.search(r"\nGiven value: \[?Namespace\(class_path='(lightning\.[^']*)'", str(error))
    reasons = re.findall(r"^ +- (?!Expected a <class )(.*)", str(error), re.MULTILINE)
    return MisconfigurationException(f"class_path = {given[1]}: {'; '.join(reasons)}") if given else None


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


def _thread_error(arguments: threading.ExceptHookArgs) -> None:
    """Leave out what TensorBoard's thread can't write: the next figure that is logged raises it once more."""
    if not (isinstance(arguments.exc_value, OSError) and "AsyncWriter" in type(arguments.thread).__name__):
        threading.__excepthook__(arguments)


def is_lost_contact(error: Exception) -> bool:
    """Whether a collective failed since a process at its other end is gone; gloo has no type of error of its own."""
    return isinstance(error, DistError) or re.search("Connection (closed|reset) by peer", str(error)) is not None


def unreachable(error: Exception) -> str | None:
    """The address at which gloo has looked for another process in vain when training began; None: it is another error.

    A process gives the others the address that its node's own name stands for there.
    """
    found = re.search(r"connectFullMesh failed.*remote=\[([^\]]+)\]", str(error), re.DOTALL)
    return found[1] if found else None


def is_rank_zero() -> bool:
    """Whether this process is the one that speaks for all."""
    return rank_zero_only.rank == 0  # type: ignore[attr-defined]


def silence() -> None:
    """Leave out what tells the user of this command line nothing."""
    threading.excepthook = _thread_error
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")
    warnings.filterwarnings("ignore", message="LightningCLI's args parameter")  # they are those of the command line
    warnings.filterwarnings("ignore", message="The dirpath has changed")  # a test has no checkpoint folder
    warnings.filterwarnings("ignore", message=".*your dataloader is not resumable")  # its state is the data module's
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists")  # a resumed run's own
    warnings.filterwarnings("ignore", message="The `srun` command is available")  # docs/slurm.md says when it is needed
    warnings.filterwarnings("ignore", message="Experiment logs directory .* exists")  # an older file is kept
    warnings.filterwarnings("ignore", category=DeprecationWarning, module="lightning")
    for name in ("pytorch.utilities.rank_zero", "pytorch.accelerators.cuda", "fabric.utilities.seed"):
        logging.getLogger(f"lightning.{name}").addFilter(lambda record: not _NOISE.match(record.getMessage()))
