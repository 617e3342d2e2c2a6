"""Which runs are under way, how long each has been running, and what is left: in a terminal and in a log."""

import json
import shutil
import sys
import time
from collections.abc import Hashable, Sequence
from pathlib import Path

from tqdm import tqdm

_LOG_INTERVAL_S = 60.0


class Progress:
    """Lines that a terminal keeps up to date; a log gets them when something changes, or once a minute."""

    def __init__(self) -> None:
        self._shown = 0  # lines
        self._event: Hashable = None
        self._written_at = 0.0

    def show(self, lines: Sequence[str], event: Hashable) -> None:
        """Show the state of all runs.

        Args:
            lines: What to show.
            event: What it is about, without times: a change is worth a line in a log.
        """
        is_new = event != self._event or time.monotonic() - self._written_at >= _LOG_INTERVAL_S
        is_terminal = sys.stderr.isatty()
        if not (is_new or is_terminal):
            return
        self.clear()
        longest = shutil.get_terminal_size().columns - 1 if is_terminal else None  # each must fit in one line
        print(*(line[:longest] for line in lines), sep="\n", file=sys.stderr, flush=True)
        self._event, self._written_at = event, time.monotonic()
        self._shown = len(lines) if is_terminal else 0

    def say(self, line: str) -> None:
        """Write a line that stays."""
        self.clear()
        print(line, file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Remove what a terminal shows."""
        if self._shown:
            print(f"\033[{self._shown}F\033[J", end="", file=sys.stderr, flush=True)
        self._shown = 0


def training_left(run: Path) -> str:
    """How far the training in a run's folder is, and an estimate of the rest; empty if unknown."""
    try:
        record = json.loads((run / "run.json").read_text(encoding="utf-8"))
        step, total, trained = record["step"], record["total_steps"], record["training_seconds"]
    except (OSError, ValueError, KeyError):
        return ""  # it hasn't begun
    if not (step and total) or record["state"] != "running":
        return ""
    left = trained / step * (total - step)
    return f", step {step:,} of {total:,}, about {tqdm.format_interval(left)} left"
