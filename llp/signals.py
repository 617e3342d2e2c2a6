"""Signals that end a run. Training finishes and saves its current step first; everything else ends at once.

Imports nothing heavy, so that the command line handles signals from the start.
"""

import os
import signal
import sys
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
"""Ctrl-C; a scheduler's request to end; SLURM's warning before its time limit or a preemption; a closed terminal."""


class Stopped(BaseException):
    """A signal has ended the run. Not an `Exception`, so that no handler takes it for an error."""

    def __init__(self, signum: int) -> None:
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class Listener:
    """Raises `Stopped` when a signal arrives, or, while `deferring`, stores it in `received` for training to check."""

    def __init__(self) -> None:
        self.received: int | None = None
        self.deferring = False
        self._terminals: list[int] = []

    def listen(self) -> None:
        """Start handling the signals."""
        self.received, self.deferring = None, False
        self._terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]
        self.install()

    def install(self) -> None:
        """Install this as the signals' handler, again if another library has replaced it."""
        for signum in SIGNALS:
            if signum != signal.SIGHUP or signal.getsignal(signum) != signal.SIG_IGN:  # `nohup` ignores it
                signal.signal(signum, self._handle)

    def close(self) -> None:
        """Ignore late signals, which would change the exit status of a process whose work is done.

        Python removes its handlers before the process ends.
        """
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        for signum in (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)

    def leave_child(self) -> None:
        """Let SIGTERM end a forked process, as `multiprocessing` ends its own.

        A Python handler runs only between two Python instructions, and so never in a process that was just about to
        wait for a lock.
        """
        if signal.getsignal(signal.SIGTERM) == self._handle:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        _unblock()

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        is_first = self.received is None
        if signum == signal.SIGHUP:
            self._leave_terminals()
        if not is_first and signum != signal.SIGINT:
            return  # this process is ending already, and its exit status should name the first signal
        self.received = self.received or signum
        if not self.deferring or not is_first:
            raise Stopped(signum)
        name = signal.Signals(signum).name
        hint = " (press Ctrl-C again to stop immediately)" if signum == signal.SIGINT else ""
        print(f"\n{name}: finishing and saving the current step{hint}", file=sys.stderr, flush=True)

    def _leave_terminals(self) -> None:
        """Send to nowhere what would be written to a closed terminal, where it would fail and prevent the saving."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in self._terminals:
            os.dup2(nowhere, descriptor)
        os.close(nowhere)


def _block() -> None:
    """Hold SIGTERM back until `leave_child` is done in a forked process."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])


def _unblock() -> None:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])


LISTENER = Listener()
"""The one listener of the process: signal handlers belong to the whole process."""

os.register_at_fork(before=_block, after_in_parent=_unblock, after_in_child=LISTENER.leave_child)
