"""Signals that end a run. Training finishes its step and saves it first; everything else ends at once.

Imports nothing heavy, so that the command line listens from its first moment.
"""

import signal
import sys
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Ctrl-C; the end that a scheduler announces; SLURM's warning before its time limit or a pre-emption."""


class Stopped(BaseException):
    """A signal has ended the run. No `Exception`, so that nothing on the way takes it for an error."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Listener:
    """Raises `Stopped` when a signal comes, or notes it as `received` while `deferring`, for training to notice."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.deferring = False

    def listen(self) -> None:
        """Listen from now on."""
        self.received, self.deferring = None, False
        self.install()

    def install(self) -> None:
        """Make this the handler of the signals, again if somebody else took them."""
        for signum in SIGNALS:
            signal.signal(signum, self._handle)

    def close(self) -> None:
        """Let no scheduler change the status of a process whose work is over: Python drops handlers before it ends."""
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        for signum in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(signum, signal.SIG_IGN)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        is_first = self.received is None
        if not is_first and signum != signal.SIGINT:
            return  # this process is ending already, and what it returns should say why
        self.received = self.received or signum
        if not self.deferring or not is_first:
            raise Stopped(signum)
        name = signal.Signals(signum).name
        hint = "; once more to stop at once" if signum == signal.SIGINT else ""
        print(f"\n{name}: the step is finished and saved first{hint}", file=sys.stderr, flush=True)


LISTENER = Listener()
"""The process's own: signal handlers are one a process."""
