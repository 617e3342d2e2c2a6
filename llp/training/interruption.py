"""Signals that end a run. Training finishes and saves its current step first; everything else ends at once.

Imports nothing heavy, so that the command line handles signals from the start.
"""

import signal
import sys
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
"""Ctrl-C; a scheduler's request to end; SLURM's warning before its time limit or a preemption."""


class Stopped(BaseException):
    """A signal has ended the run. Not an `Exception`, so that no handler on the way takes it for an error."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Listener:
    """Raises `Stopped` when a signal arrives, or, while `deferring`, stores it in `received` for training to check."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.deferring = False

    def listen(self) -> None:
        """Start handling the signals."""
        self.received, self.deferring = None, False
        self.install()

    def install(self) -> None:
        """Install this as the signals' handler, again if another library has replaced it."""
        for signum in SIGNALS:
            signal.signal(signum, self._handle)

    def close(self) -> None:
        """Ignore a late signal, which would change the exit status of a process whose work is done.

        Python removes its handlers before the process ends.
        """
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        for signum in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(signum, signal.SIG_IGN)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        is_first = self.received is None
        if not is_first and signum != signal.SIGINT:
            return  # this process is ending already, and its exit status should name the first signal
        self.received = self.received or signum
        if not self.deferring or not is_first:
            raise Stopped(signum)
        name = signal.Signals(signum).name
        hint = " (press Ctrl-C again to stop immediately)" if signum == signal.SIGINT else ""
        print(f"\n{name}: finishing and saving the current step{hint}", file=sys.stderr, flush=True)


LISTENER = Listener()
"""The one listener of the process: signal handlers belong to the whole process."""
