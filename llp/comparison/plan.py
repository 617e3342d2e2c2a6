"""The plan of a comparison: the runs that its specification asks for, as far as the records so far decide them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from llp.comparison.records import NOISE, RATE, Failure, Record, Timing, Trial, best_trial, run_table
from llp.comparison.spec import Budget, Settings, Specification, merged
from llp.errors import require


@dataclass(frozen=True)
class Arm:
    """The size of an arm's model, known before it is trained, and the cost of a training window."""

    parameters: int
    pairs: float
    """Query-key pairs of a head, summed over the layers."""
    flops: int
    """FLOPs of the forward and the backward pass."""
    positions: int
    """Positions with a loss."""
    windows_per_step: int


class PlannedRun(NamedTuple):
    """A run that the specification asks for."""

    arm: str
    seed: int
    learning_rate: float
    steps: int
    uses: tuple[str, ...]
    """Budgets, `rate` and `noise floor`."""

    @property
    def name(self) -> str:
        """`llp-lr0.003-steps500-s0`; the specification determines everything else."""
        return f"{self.arm}-lr{self.learning_rate:g}-steps{self.steps}-s{self.seed}"

    @property
    def is_tested(self) -> bool:
        """Whether the run is tested; one that only serves to choose a learning rate is not."""
        return self.uses != (RATE,)


class Plan:
    """The runs of a comparison, in the order in which to execute them, and the table of what is known of them.

    An arm's learning rate is chosen by mean validation loss under the first budget. All other runs of the arm wait for
    that choice. A rate at which a run diverged is not chosen. A run that failed in another way leaves its arm without a
    choice; other arms continue.

    Args:
        spec: The specification.
        arms: The arms by name.
        records: The records by the names of their runs.
        failed: The failed runs by name.
        timing: The result of the timing pass, if there was one.
        choose_all: Instead of waiting for a choice, take the middle learning rate: a preview of all runs.
    """

    def __init__(
        self,
        spec: Specification,
        arms: Mapping[str, Arm],
        records: Mapping[str, Record],
        failed: Mapping[str, Failure],
        timing: Timing | None = None,
        choose_all: bool = False,
    ) -> None:
        self.spec, self.arms, self.records, self.failed = spec, arms, records, failed
        self.timing, self.choose_all = timing or Timing({}, {}), choose_all
        untimed = [arm for arm in spec.arms if arm not in self.timing.seconds_per_step]
        remedy = f"{', '.join(untimed)} must be timed first; run `llp compare SPEC --time` on a quiet machine"
        require("seconds" not in spec.budgets or choose_all or not untimed, "budgets", "seconds", remedy)
        self._is_timed = not untimed

    @cached_property
    def runs(self) -> list[PlannedRun]:
        """Each run once, those that others wait for first."""
        unique: dict[str, PlannedRun] = {}
        for run in self._in_order():
            before = unique.get(run.name)
            uses = run.uses if before is None else tuple(dict.fromkeys(before.uses + run.uses))
            unique[run.name] = run._replace(uses=uses)
        return list(unique.values())

    def _in_order(self) -> Iterator[PlannedRun]:
        spec, (first, *further) = self.spec, self.spec.budgets
        yield from self._trials(spec.reference)
        yield from self._finals(spec.reference, first, spec.noise_seeds or spec.seeds, NOISE)
        # Arm by arm, so that the first ones can be reported before the last ones begin.
        for arm in sorted(spec.arms, key=lambda arm: arm != spec.reference):
            yield from self._trials(arm)
            yield from self._finals(arm, first, spec.seeds, first)
        # The contrasts named beforehand come before what is exploratory.
        for *pair, budget in spec.primary:
            for arm in pair:
                yield from self._finals(arm, budget, spec.seeds, budget)
        for budget in further:
            for seed in spec.seeds:
                for arm in spec.arms:
                    yield from self._finals(arm, budget, [seed], budget)

    def _trials(self, arm: str) -> Iterator[PlannedRun]:
        for trial in self.trials(arm):
            yield from self._runs_at(arm, trial.learning_rate)

    def _runs_at(self, arm: str, rate: float) -> list[PlannedRun]:
        """The runs that try a learning rate."""
        spec = self.spec
        steps, seeds = self.steps(arm, spec.budgets[0]), spec.learning_rate_seeds or spec.seeds
        return [PlannedRun(arm, seed, rate, steps, (RATE,)) for seed in seeds]

    def _finals(self, arm: str, budget: Budget, seeds: Sequence[int], use: str) -> Iterator[PlannedRun]:
        """Tested runs of an arm at its chosen learning rate."""
        rate = self.chosen_rate(arm)
        if rate is not None:
            yield from (PlannedRun(arm, seed, rate, self.steps(arm, budget), (use,)) for seed in seeds)

    def steps(self, arm: str, budget: Budget) -> int:
        """Optimizer steps of an arm under a budget; 0 if nothing is trained."""
        spec, timing = self.spec, self.timing
        reference, own, ratio = self.arms[spec.reference], self.arms[arm], 1.0
        if budget == "positions":
            ratio = reference.positions / own.positions
        elif budget == "seconds" and self._is_timed:
            ratio = timing.seconds_per_step[spec.reference] / timing.seconds_per_step[arm]
        elif budget in ("flops", "seconds"):  # seconds of a preview
            ratio = reference.flops / own.flops
        return max(1, round(spec.steps * ratio)) if spec.steps else 0

    def settings(self, run: PlannedRun) -> Settings:
        """The configuration of `llp fit` for a run."""
        spec = self.spec
        n_batches = run.steps * spec.shared.get("trainer", {}).get("accumulate_grad_batches", 1)
        schedule = {"learning_rate": run.learning_rate, "warmup_steps": round(spec.warmup * run.steps)}
        interval = max(1, math.ceil(n_batches / spec.validations))
        scoring = {"scoring_window_len": spec.scoring_window_len, "scoring_stride": spec.scoring_stride}
        own: Settings = {
            "seed_everything": run.seed,
            "data": {"init_args": {name: value for name, value in scoring.items() if value is not None}},
        }
        if run.steps > 0:
            own["model"] = {"init_args": schedule}
            own["trainer"] = {"max_steps": run.steps, "val_check_interval": interval}
        return merged(spec.shared, {"model": spec.model(run.arm)}, own)

    # Learning rates

    def trials(self, arm: str) -> list[Trial]:
        """The learning rates of an arm: those of the specification, and extensions beyond the best one."""
        trials = [self._trial(arm, rate) for rate in self.spec.learning_rates]
        for _ in range(self.spec.extensions):
            best, rates = _best_rate(trials), [trial.learning_rate for trial in trials]
            if best is None:
                break
            if best == rates[0]:
                trials.insert(0, self._trial(arm, _rounded(rates[0] * rates[0] / rates[1])))
            elif best == rates[-1]:
                trials.append(self._trial(arm, _rounded(rates[-1] * rates[-1] / rates[-2])))
            else:
                break
        return trials

    def _trial(self, arm: str, rate: float) -> Trial:
        return Trial(rate, [self._outcome(run.name) for run in self._runs_at(arm, rate)])

    def _outcome(self, name: str) -> float | None:
        """The final validation loss of a run, infinite if it diverged, None if it isn't known."""
        if name in self.records:
            return self.records[name].validation_loss
        return math.inf if name in self.failed and self.failed[name].is_diverged else None

    def chosen_rate(self, arm: str) -> float | None:
        """The learning rate with the lowest mean validation loss; None if some are missing, or all have diverged.

        It is 0 if nothing is trained.
        """
        if self.spec.steps == 0:
            return 0.0
        trials = self.trials(arm)
        if self.choose_all and any(trial.loss is None for trial in trials):
            return trials[len(trials) // 2].learning_rate
        return _best_rate(trials)

    # What is known

    def is_done(self, run: PlannedRun) -> bool:
        """Whether a run's record has everything that is asked for."""
        record = self.records.get(run.name)
        if record is None or not run.is_tested:
            return record is not None
        return record.test is not None and (record.slices is not None or not self.spec.slices)

    def to_do(self) -> list[PlannedRun]:
        """The runs that can be started now and are neither done nor failed."""
        return [run for run in self.runs if not self.is_done(run) and run.name not in self.failed]

    @cached_property
    def table(self) -> pd.DataFrame:
        """A row for each run, indexed by its name.

        Its columns are `arm`, `seed`, `learning_rate`, `steps`, `uses` (budgets, `rate` and `noise floor`), `state`
        (`done`, `missing` or `failed`) and, of runs that have a record, `Record.columns`.
        """

        def row(run: PlannedRun) -> dict[str, Any]:
            state = "done" if self.is_done(run) else "failed" if run.name in self.failed else "missing"
            record = self.records.get(run.name)
            known = {} if record is None else record.columns()
            return {**run._asdict(), "run": run.name, **known, "state": state}

        return run_table(map(row, self.runs))

    @cached_property
    def recorded(self) -> pd.DataFrame:
        """The runs that have a record, ordered by name."""
        return self.table[self.table["class_path"].notna()].sort_index()

    def tested(self, use: str, arm: str | None = None) -> pd.DataFrame:
        """The tested runs with a use, of all arms or of one."""
        table = self.table
        is_used = [use in uses and arm in (None, own) for uses, own in zip(table["uses"], table["arm"], strict=True)]
        return table[np.array(is_used, dtype=bool) & table["test"].notna()]

    @cached_property
    def finals(self) -> dict[tuple[str, str], pd.DataFrame]:
        """The tested runs by arm and budget; pairs without any are left out."""
        pairs = [(arm, budget) for arm in self.spec.arms for budget in self.spec.budgets]
        return {pair: runs for pair in pairs if len(runs := self.tested(pair[1], pair[0]))}

    def first_finals(self) -> dict[str, pd.DataFrame]:
        """The tested runs of each arm under the first budget; arms without any are left out."""
        return {arm: runs for (arm, budget), runs in self.finals.items() if budget == self.spec.budgets[0]}

    def spent(self, run: pd.Series, budget: str) -> float | None:
        """What a run used of a budget; None for seconds if the arm has not been timed."""
        if budget != "seconds":
            return float(run[budget])
        seconds = self.timing.seconds_per_step.get(run["arm"])
        return None if seconds is None else run["steps"] * seconds

    def preview(self, rate: float) -> str:
        """All runs and their cost as text. A learning rate that is still to be chosen is shown as the middle one.

        Args:
            rate: FLOP/s that are assumed where nothing has been timed.
        """
        rows, to_do = [], self.to_do()
        for run in self.runs:
            flops = run.steps * self.arms[run.arm].windows_per_step * self.arms[run.arm].flops
            step = self.timing.seconds_per_step.get(run.arm)
            state = "to do" if run in to_do else "failed" if run.name in self.failed else "done"
            rows.append({"run": run.name, "state": state, "tested": "yes" if run.is_tested else "no",
                         "steps": run.steps, "FLOPs": float(flops),
                         "seconds": flops / rate if step is None else run.steps * step})  # fmt: skip
        table = pd.DataFrame(rows)
        left = table[table["state"] != "done"][["FLOPs", "seconds"]].sum()
        formats = {"steps": "{:,}".format, "FLOPs": "{:.2e}".format, "seconds": "{:,.0f}".format}
        has_choice = len(self.spec.learning_rates) > 1
        note = "\nThe middle learning rate stands for one that is still to be chosen." if has_choice else ""
        source = "as timed" if self._is_timed else f"assuming {rate:.2e} FLOP/s"
        price, hours = self.spec.assumed_price, left["seconds"] / 3600
        cost = "" if price is None else f", {hours * price:,.0f} dollars at {price:,.2f} an hour"
        return (
            f"{table.to_string(index=False, formatters=formats)}\n"
            f"{len(to_do)} of {len(rows)} runs to do: {left['FLOPs']:.2e} FLOPs of training, "
            f"{hours:,.2f} device hours ({source}){cost}; validation and test are not included.{note}"
        )


def _best_rate(trials: Sequence[Trial]) -> float | None:
    """The learning rate of the best trial; None if one is missing, or all have diverged."""
    best = best_trial(trials)
    return None if best is None or any(trial.loss is None for trial in trials) else best.learning_rate


def _rounded(rate: float) -> float:
    """A computed rate with three significant digits, as somebody would write it."""
    return float(f"{rate:.3g}")
