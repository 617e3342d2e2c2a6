"""The seconds that a process has spent on training."""

import time


class TrainingClock:
    """Counts seconds from `start` on, but for the time between `stop` and `go_on`: that of a validation, say."""

    def __init__(self) -> None:
        self._counted = 0.0
        self._running_since: float | None = None

    def start(self) -> None:
        """Count from 0, now."""
        self._counted = 0.0
        self.go_on()

    def stop(self) -> None:
        """Stand still; once more changes nothing."""
        self._counted, self._running_since = self.seconds(), None

    def go_on(self) -> None:
        """Count on from where it stands."""
        self.stop()
        self._running_since = time.perf_counter()

    def seconds(self) -> float:
        """The count so far."""
        return self._counted + (0.0 if self._running_since is None else time.perf_counter() - self._running_since)
