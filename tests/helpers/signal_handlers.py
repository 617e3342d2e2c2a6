"""Signal handlers that a test puts back."""

import signal
from contextlib import contextmanager

from llp.signals import SIGNALS


@contextmanager
def handlers_restored():
    """`llp` is a process of its own and keeps its signal handlers; the tests go on with theirs."""
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
