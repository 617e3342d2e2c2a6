"""A folder for one injection of a fault, and what may come of it."""

import os
import random
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from campaigns.forked import Outcome, llp_in
from campaigns.undisturbed import RUN, STEPS, Undisturbed, difference, report_of, rows_of_test
from llp.checkpoints import reading

# What may come of a fault
EQUAL, REFUSED, MARKED = "equal to the undisturbed", "refused by one message", "left out, and said"
# and what may not
WRONG, LOST, TRACEBACK = "silent wrong metric", "lost checkpoint", "traceback"
HANG, UNCLEAR, BROKEN = "hang", "unclear message", "error of the campaign itself"
FAILURES = (WRONG, LOST, TRACEBACK, HANG, UNCLEAR, BROKEN)


class OutcomeError(Exception):
    """A fault has had a consequence that it must not have: which, and the evidence."""

    def __init__(self, kind: str, evidence: object) -> None:
        super().__init__(f"{kind}: {evidence}")
        self.kind = kind


@dataclass
class Scene:
    """A folder for one injection.

    Attributes:
        folder: Where commands run.
        rng: Its random numbers.
        undisturbed: What must come of it.
        fault: What was done, in words.
    """

    folder: Path
    rng: random.Random
    undisturbed: Undisturbed
    fault: str = ""

    # What `llp` does

    def llp(self, *arguments: object, prepare: Callable[[], None] = lambda: None) -> Outcome:
        """Run `llp` to its end; it neither hangs nor shows a traceback."""
        return self.judged(llp_in(self.folder, *arguments, prepare=prepare))

    def judged(self, outcome: Outcome) -> Outcome:
        if outcome.status is None:
            raise OutcomeError(HANG, outcome.said[-2000:])
        if "Traceback" in outcome.said:
            raise OutcomeError(TRACEBACK, outcome.said[-3000:])
        return outcome

    def finished(self, outcome: Outcome) -> None:
        """Require that a process reached its end."""
        if self.judged(outcome).status != 0:
            raise OutcomeError(UNCLEAR, f"it should have gone on: {outcome.said[-2000:]}")

    def refused(self, outcome: Outcome, *names: str) -> None:
        """Require one message that contains one of these names."""
        lines = [line for line in self.judged(outcome).err.splitlines() if "error: " in line]
        if outcome.status != 1 or len(lines) != 1 or not any(name in lines[0] for name in names):
            raise OutcomeError(UNCLEAR, f"status {outcome.status}, wanted one of {names}: {outcome.said[-2000:]}")

    # What must come of it

    def same(self, what: str, found: object, expected: object) -> None:
        if found != expected:
            raise OutcomeError(WRONG, f"{what}: {str(found)[:1000]} in place of {str(expected)[:1000]}")

    def same_run(self, run: Path = RUN, saved: int = 0) -> None:
        """Require that a finished run is the undisturbed one, bit for bit.

        Args:
            run: Its folder.
            saved: The step from which it was resumed. After the last step TensorBoard's summary of the run, which is
                written at its end, is missing.
        """
        left = [*(self.folder / run / "checkpoints").glob(".*")]
        if left:
            raise OutcomeError(LOST, f"left behind: {left}")
        left_out = "final/" if saved == STEPS else None
        found = difference(self.undisturbed.whole / run, self.folder / run, left_out)
        if found is not None:
            raise OutcomeError(WRONG, found[:2000])

    def same_test(self) -> None:
        self.same("test", rows_of_test(self.folder), self.undisturbed.test)

    def same_report(self) -> None:
        self.same("report", report_of(self.folder), self.undisturbed.report)

    def same_cache(self) -> None:
        """Require that the prepared folder is there once, to the byte."""
        expected, found = (
            {path.relative_to(folder): path.read_bytes() for path in (folder / "cache").rglob("*") if path.is_file()}
            for folder in (self.undisturbed.cut, self.folder)
        )
        if found != expected:
            raise OutcomeError(WRONG, f"the prepared files {[*found]} are not the undisturbed {[*expected]}")

    def kept(self, step: int, run: Path = RUN) -> int:
        """Require that a checkpoint of this step or a later one is there; returns the newest one's step."""
        folder = self.folder / run / "checkpoints"
        steps = [reading.read(path)["global_step"] for path in reading.newest_first(folder)]
        # What a killed process has moved aside, and the next start restores
        aside = [one / "meta.pt" if one.is_dir() else one for one in folder.glob(".*.replaced")]
        now = max([0, *steps, *(torch.load(path)["global_step"] for path in aside)])
        if now < step:
            raise OutcomeError(LOST, f"step {step}, then {now}")
        return now


def next_second() -> None:
    """TensorBoard tells the files of a run apart by the second in which they were created."""
    time.sleep(1.0 - time.time() % 1.0)


def at_file(act: Callable[[int], object], pattern: str = "") -> None:
    """Call `act` with a count from 1 whenever this process opens a file to write to it, or renames one."""
    count, is_acting = 0, False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count, is_acting
        if is_acting or event not in ("open", "os.rename"):
            return
        path, _, flags = (*arguments, 0, 0)[:3]
        writes = event == "os.rename" or (isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR))
        place = str(arguments[1] if event == "os.rename" else path)
        if writes and "/dev/" not in place and pattern in place:
            count, is_acting = count + 1, True
            act(count)
            is_acting = False

    sys.addaudithook(hook)
