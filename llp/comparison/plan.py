"""Which runs a comparison needs: those that its specification names, as far as the records so far decide."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from llp.comparison.specification import Ablation, Budget, Settings, Specification, merged
from llp.comparison.study import Contrast, Failure, Record, Study, Trial
from llp.errors import require


@dataclass(frozen=True)
class Contestant:
    """What is known of an arm's model before it is trained; the numbers are those of a training window."""

    parameters: int
    pairs: float
    """Query-key pairs of a head, summed over the layers."""
    flops: int
    """FLOPs of the forward and the backward pass."""
    positions: int
    """Positions with a loss."""
    window_len: int
    windows_per_step: int


@dataclass(frozen=True)
class Timing:
    """What the interleaved timing pass found: seconds and bytes by arm, and `how` it was made."""

    seconds_per_step: Mapping[str, float]
    peak_memory: Mapping[str, int]
    how: Mapping[str, Any]


@dataclass(frozen=True)
class PlannedRun:
    """A run, and whether it is tested; one that only helps to choose a learning rate is not."""

    arm: str
    seed: int
    learning_rate: float
    steps: int
    settings: Settings
    """The configuration of `llp fit`."""
    is_tested: bool

    @property
    def name(self) -> str:
        """Readable, and the same wherever the text lies: `llp-lr0.003-steps500-s0`."""
        return f"{self.arm}-lr{self.learning_rate:g}-steps{self.steps}-s{self.seed}"


class Plan:
    """The runs of a comparison, in the order in which they are to be carried out, and their places in its study.

    Learning rates are chosen by mean validation loss under the first budget, arm by arm; all other runs of an arm wait
    for its choice. A trial that diverged is not chosen; one that failed in another way leaves its arm without a choice,
    and stops no other arm.

    Args:
        specification: What is compared.
        contestants: By arm, those of ablations included (`variants`).
        records: The runs that are done, by name.
        failed: The runs that failed, by name.
        timing: Seconds of a step by arm, where they have been measured.
        choose_all: Instead of waiting for a choice, take the middle one of the rates: for a preview of all runs.
    """

    def __init__(
        self,
        specification: Specification,
        contestants: Mapping[str, Contestant],
        records: Mapping[str, Record],
        failed: Mapping[str, Failure],
        timing: Timing | None = None,
        choose_all: bool = False,
    ) -> None:
        self.specification, self.contestants = specification, contestants
        self.records, self.failed, self.timing = records, failed, timing
        self.choose_all = choose_all
        untimed = [arm for arm in specification.arms if timing is None or arm not in timing.seconds_per_step]
        remedy = (
            f"no step of {', '.join(untimed)} has been timed; run `llp compare SPEC --time` on a quiet machine first"
        )
        has_seconds = "seconds" not in specification.budgets or not untimed
        require(has_seconds or choose_all, "budgets", "seconds", remedy)
        self._is_timed = not untimed

    # The runs

    def runs(self) -> list[PlannedRun]:
        """Each run once, those that others wait for first."""
        spec = self.specification
        first, *further = spec.budgets
        by_reference = sorted(spec.arms, key=lambda arm: arm != spec.reference)
        groups = [
            self._trials(spec.reference),
            self._noise(),
            # Arm by arm, so that something can be said about the first ones before the last ones begin.
            (run for arm in by_reference for run in [*self._trials(arm), *self._finals(arm, first, spec.seeds)]),
            # What was named before the runs can be answered before what is exploratory.
            (run for *pair, budget in spec.primary for arm in pair for run in self._finals(arm, budget, spec.seeds)),
            (run for budget in further for seed in spec.seeds for arm in spec.arms
             for run in self._finals(arm, budget, [seed])),
            (run for name in spec.ablations for run in self._ablation(name)),
        ]  # fmt: skip
        unique: dict[str, PlannedRun] = {}
        for group in groups:
            for run in group:
                before = unique.get(run.name, run)
                unique[run.name] = replace(before, is_tested=before.is_tested or run.is_tested)
        return list(unique.values())

    def is_done(self, run: PlannedRun) -> bool:
        """Whether a run's record has all that is asked for."""
        record = self.records.get(run.name)
        if record is None or not run.is_tested:
            return record is not None
        return record.test is not None and (record.slices is not None or not self.specification.slices)

    def steps(self, arm: str, budget: Budget) -> int:
        """Optimizer steps of an arm under a budget."""
        spec = self.specification
        reference, own = self.contestants[spec.reference], self.contestants[arm]
        ratio = 1.0
        if budget == "positions":
            ratio = reference.positions / own.positions
        elif budget == "flops":
            ratio = reference.flops / own.flops
        elif budget == "seconds" and self.timing is not None and self._is_timed:
            ratio = self.timing.seconds_per_step[spec.reference] / self.timing.seconds_per_step[_arm_of(arm)]
        elif budget == "seconds":
            ratio = reference.flops / own.flops  # a preview
        return max(1, round(spec.steps * ratio))

    def _run(self, arm: str, budget: Budget, seed: int, learning_rate: float, is_tested: bool) -> PlannedRun:
        spec, steps = self.specification, self.steps(arm, budget)
        n_batches = steps * spec.shared.get("trainer", {}).get("accumulate_grad_batches", 1)
        scoring = {"scoring_window_len": spec.scoring_window_len, "scoring_stride": spec.scoring_stride}
        own: Settings = {
            "seed_everything": seed,
            "model": {"init_args": {"learning_rate": learning_rate, "warmup_steps": round(spec.warmup * steps)}},
            "data": {"init_args": {name: value for name, value in scoring.items() if value is not None}},
            "trainer": {"max_steps": steps, "val_check_interval": max(1, math.ceil(n_batches / spec.validations))},
        }
        settings = merged(spec.shared, {"model": variants(spec)[arm]}, own)
        return PlannedRun(arm, seed, learning_rate, steps, settings, is_tested)

    def _trials(self, arm: str) -> Iterator[PlannedRun]:
        for rate in self.rates(arm):
            yield from self._trial(arm, rate)

    def _trial(self, arm: str, rate: float) -> Iterator[PlannedRun]:
        """The runs of a learning rate, one a seed."""
        spec = self.specification
        for seed in spec.learning_rate_seeds or spec.seeds:
            yield self._run(arm, spec.budgets[0], seed, rate, is_tested=False)

    def _noise(self) -> Iterator[PlannedRun]:
        spec = self.specification
        return self._finals(spec.reference, spec.budgets[0], spec.noise_seeds or spec.seeds)

    def _finals(self, arm: str, budget: Budget, seeds: Sequence[int]) -> Iterator[PlannedRun]:
        """Tested runs of an arm, or a variant of one, at the rate that was chosen for the arm."""
        rate = self.chosen_rate(_arm_of(arm))
        if rate is not None:
            for seed in seeds:
                yield self._run(arm, budget, seed, rate, is_tested=True)

    def _ablation(self, name: str) -> Iterator[PlannedRun]:
        spec = self.specification
        for variant in _variants_of(spec, spec.ablations[name]):
            yield from self._finals(variant, spec.budgets[0], spec.seeds)

    # Learning rates

    def rates(self, arm: str) -> list[float]:
        """The learning rates to try for an arm: those of the specification, and further ones beyond the best end."""
        rates = list(self.specification.learning_rates)
        for _ in range(self.specification.extensions):
            best = self._best(arm, rates)
            if best == rates[0]:
                rates.insert(0, _rounded(rates[0] * rates[0] / rates[1]))
            elif best == rates[-1]:
                rates.append(_rounded(rates[-1] * rates[-1] / rates[-2]))
            else:
                break
        return rates

    def chosen_rate(self, arm: str) -> float | None:
        """The learning rate with the least mean validation loss; None: not all have been tried, or all diverged."""
        rates = self.rates(arm)
        if self.choose_all and any(self._loss(arm, rate) is None for rate in rates):
            return rates[len(rates) // 2]
        return self._best(arm, rates)

    def _best(self, arm: str, rates: Sequence[float]) -> float | None:
        losses = [self._loss(arm, rate) for rate in rates]
        known = [loss for loss in losses if loss is not None]
        if len(known) < len(losses) or min(known) == math.inf:
            return None
        return rates[losses.index(min(known))]

    def _loss(self, arm: str, rate: float) -> float | None:
        """Mean validation loss of a trial over its seeds; infinite if one diverged, None if it isn't known."""
        names = [run.name for run in self._trial(arm, rate)]
        if self._is_diverged(names):
            return math.inf
        if any(name not in self.records for name in names):
            return None
        # JSON has no number for a loss that is not finite.
        losses: list[float | None] = [self.records[name].validation_loss for name in names]
        return math.fsum(math.inf if loss is None else loss for loss in losses) / len(losses)

    def _is_diverged(self, names: Sequence[str]) -> bool:
        return any(name in self.failed and self.failed[name].is_diverged for name in names)

    # The study

    def study(self, command: str) -> Study:
        """The records in their places; `command` is what continues the comparison."""
        spec, timing = self.specification, self.timing or Timing({}, {}, {})
        runs = self.runs()
        return Study(
            name=spec.name,
            description=spec.description,
            command=command,
            arms=list(spec.arms),
            reference=spec.reference,
            budgets=spec.budgets,
            seeds=spec.seeds,
            finals={
                (arm, budget): self._tested(self._finals(arm, budget, spec.seeds))
                for arm in spec.arms
                for budget in spec.budgets
            },
            trials={arm: [self._tried(arm, rate) for rate in self.rates(arm)] for arm in spec.arms},
            noise=self._tested(self._noise()),
            primary=[Contrast(*contrast) for contrast in spec.primary],
            ablations={name: self._ablated(name) for name in spec.ablations},
            seconds_per_step=timing.seconds_per_step,
            peak_memory=timing.peak_memory,
            timing=timing.how,
            missing=[run.name for run in runs if not self.is_done(run) and run.name not in self.failed],
            failed={run.name: self.failed[run.name] for run in runs if run.name in self.failed},
            undecided={arm: names for arm in spec.arms if (names := self._obstacles(arm))},
        )

    def _records_of(self, runs: Iterable[PlannedRun]) -> list[Record]:
        """Those that there are."""
        return [self.records[run.name] for run in runs if run.name in self.records]

    def _tested(self, runs: Iterable[PlannedRun]) -> list[Record]:
        return [record for record in self._records_of(runs) if record.test is not None]

    def _tried(self, arm: str, rate: float) -> Trial:
        runs = list(self._trial(arm, rate))
        records = self._records_of(runs)
        is_diverged = self._is_diverged([run.name for run in runs])
        is_whole = len(records) == len(runs)
        return Trial(rate, records if is_whole else [], is_diverged, [] if is_whole else records)

    def _obstacles(self, arm: str) -> list[str]:
        """The failed trials without which no learning rate can be chosen for an arm."""
        trials = [[run.name for run in self._trial(arm, rate)] for rate in self.rates(arm)]
        needed = chain.from_iterable(names for names in trials if not self._is_diverged(names))
        return [name for name in needed if name in self.failed and name not in self.records]

    def _ablated(self, name: str) -> list[tuple[Any, list[Record]]]:
        """Each value of an ablation and its runs, the arm's own value among them where it is given."""
        spec = self.specification
        ablation, budget = spec.ablations[name], spec.budgets[0]
        own = merged(spec.shared.get("model", {}), spec.arms[ablation.arm]).get("init_args", {}).get(ablation.setting)
        arms = dict(zip(ablation.values, _variants_of(spec, ablation), strict=True))
        if own is not None:
            arms[own] = ablation.arm
        order = sorted(arms) if all(isinstance(value, int | float) for value in arms) else list(arms)
        return [(value, self._tested(self._finals(arms[value], budget, spec.seeds))) for value in order]


def portable(settings: Settings) -> Settings:
    """A configuration without what changes no result: where the text and its tokens lie, and who keeps the figures."""
    data, sections = settings.get("data", {}), dict(settings)
    if "trainer" in sections:
        sections["trainer"] = {key: value for key, value in sections["trainer"].items() if key != "logger"}
    arguments = {
        key: value
        for key, value in data.get("init_args", {}).items()
        if key not in ("path", "cache_dir", "check_training_tokens")
    }
    return {**sections, "data": {**data, "init_args": arguments}}


def variants(specification: Specification) -> dict[str, Settings]:
    """Class and arguments of the model by arm, and by variant of an arm in an ablation."""
    found = dict(specification.arms)
    for ablation in specification.ablations.values():
        for number, (value, name) in enumerate(
            zip(ablation.values, _variants_of(specification, ablation), strict=True)
        ):
            changed = {ablation.setting: value}
            changed |= {setting: values[number] for setting, values in ablation.together.items()}
            found[name] = merged(specification.arms[ablation.arm], {"init_args": changed})
    return found


def _variants_of(specification: Specification, ablation: Ablation) -> list[str]:
    return [f"{ablation.arm}.{ablation.setting}={value}" for value in ablation.values]


def _arm_of(variant: str) -> str:
    return variant.partition(".")[0]


def _rounded(rate: float) -> float:
    """Three digits, so that a rate that was computed reads as one that was given."""
    return float(f"{rate:.3g}")
