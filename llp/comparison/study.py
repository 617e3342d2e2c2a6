"""What a comparison has found out so far: the records of its runs, put in their places. The report is made of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple


@dataclass(frozen=True)
class Record:
    """What is kept of a run; `records/<run>.json` holds exactly these fields."""

    run: str
    """Its name, `<arm>-<hash of its settings>-s<seed>`."""
    arm: str
    """The contestant, `<arm>` or `<arm>.<setting>=<value>` in an ablation."""
    class_path: str
    seed: int
    learning_rate: float
    steps: int
    """Optimizer steps."""
    settings: dict[str, Any]
    """The configuration of the run, without what is particular to a machine."""
    commands: list[str]
    """What repeats it."""
    parameters: int
    pairs_per_window: float
    """Query-key pairs of a head in a training window, summed over the layers."""
    flops_per_window: int
    """FLOPs of training on one window: forward and backward."""
    positions_per_window: int
    """Positions with a loss."""
    windows: int
    """Training windows in the whole run."""
    curve: list[dict[str, float]]
    """One entry a validation: `step`, `loss`, `bits_per_byte`; the last one is that of the finished run."""
    test: dict[str, Any] | None
    """`protocol` and `rows` of `test.json`; None: a run for the choice of the learning rate alone."""
    slices: dict[str, Any] | None
    """`slices.json` as `llp predict` wrote it: loss by position and on recall tokens by distance."""
    hashes: dict[str, str]
    """`initial_weights` (all but V3's map), `training_windows`, `first_<k>_batches` of them for k = 1, 2, 4, ...,
    `data` (the text of all splits), `tokenizer` and `final_weights`."""
    commit: str | None
    """Of the source that trained it, as of the run's last start; None: not known."""
    versions: dict[str, str]
    device: str

    @property
    def validation_loss(self) -> float:
        """Of the finished run, in nats per token."""
        return self.curve[-1]["loss"]

    @property
    def positions(self) -> int:
        """Trained positions in the whole run."""
        return self.windows * self.positions_per_window

    @property
    def flops(self) -> int:
        """Training FLOPs of the whole run."""
        return self.windows * self.flops_per_window


class Contrast(NamedTuple):
    """A difference that was named before the runs: `first` minus `second` under a budget."""

    first: str
    second: str
    budget: str


class Trial(NamedTuple):
    """A learning rate that is tried for an arm, and its runs."""

    learning_rate: float
    records: Sequence[Record]
    """One a seed if all are done, else none."""
    is_diverged: bool = False
    """Whether the loss of a run was not finite any more, which ended it without a record."""
    partial: Sequence[Record] = ()
    """Those of a trial that lacks some of its seeds: nothing can be chosen by them."""

    @property
    def is_done(self) -> bool:
        """Whether it is known what the rate comes to."""
        return self.is_diverged or len(self.records) > 0


class Failure(NamedTuple):
    """How a run failed."""

    last_words: str
    is_diverged: bool
    """Whether the loss or the gradient was not finite; else it was something that says nothing about its settings."""


@dataclass(frozen=True)
class Study:
    """All that a report is made of."""

    name: str
    description: str
    command: str
    """What makes or continues it."""
    arms: Sequence[str]
    """The contestants, in the order of the specification."""
    reference: str
    """The arm that others are measured against."""
    budgets: Sequence[str]
    """Of `windows`, `positions`, `flops`, `seconds`; under the first one the learning rates were chosen."""
    seeds: Sequence[int]
    finals: Mapping[tuple[str, str], Sequence[Record]]
    """By arm and budget: tested runs at the chosen learning rate, in the order of the seeds; missing ones left out."""
    trials: Mapping[str, Sequence[Trial]]
    """By arm: the learning rates tried under the first budget, in rising order."""
    noise: Sequence[Record]
    """Runs of one arm that differ by their seed alone, for the noise floor."""
    primary: Sequence[Contrast]
    """Named before the runs; Holm's correction is over them."""
    ablations: Mapping[str, Sequence[tuple[Any, Sequence[Record]]]]
    """By name, `<arm>.<setting>`: each value and its tested runs, the arm's own value among them."""
    seconds_per_step: Mapping[str, float]
    """By arm, from the interleaved timing pass; empty if there was none. A record holds no time: it would never be the
    same twice."""
    peak_memory: Mapping[str, int]
    """By arm, in bytes: the largest memory of a process that takes training steps, from the same pass."""
    timing: Mapping[str, Any]
    """How that pass was made: `device`, `threads`, `rounds`; empty if there was none."""
    missing: Sequence[str]
    """Runs that are planned and not done."""
    failed: Mapping[str, Failure]
    """Runs that failed, by name."""
    undecided: Mapping[str, Sequence[str]]
    """Arms for which no learning rate can be chosen, since these trials failed, and not by diverging."""

    @property
    def first_finals(self) -> dict[str, Sequence[Record]]:
        """By arm: its tested runs under the first budget; arms without any are left out."""
        budget = self.budgets[0] if self.budgets else ""
        return {arm: records for arm in self.arms if (records := self.finals.get((arm, budget)))}
