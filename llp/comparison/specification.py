"""What a comparison is to compare, as its YAML file says, and whether that can be done."""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from llp.errors import require

Budget = Literal["windows", "positions", "flops", "seconds"]
Settings = dict[str, Any]


@dataclass(frozen=True)
class Ablation:
    """One setting of an arm at several values; all else, the learning rate too, is the arm's own.

    Args:
        arm: The arm.
        setting: Its name among the `init_args` of the arm's model.
        values: The values to try; the arm's own is shown beside them.
        together: Other `init_args` that change along, each with one value for each of `values`.
    """

    arm: str
    setting: str
    values: list[Any]
    together: dict[str, list[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Specification:
    """A comparison of architectures that are trained on the same windows in the same order and scored alike.

    Args:
        name: Of the comparison's folder.
        arms: The contestants by name: `class_path` and `init_args` of a model, which come on top of what is shared.
        reference: The arm whose budget the others get, and that they are measured against.
        steps: Optimizer steps of the reference; under equal `windows` those of all arms.
        learning_rates: Tried for every arm, in rising order, under the first budget.
        scoring_window_len: Positions of a scoring window, the same for all arms; a text needs it, a task has its own.
        scoring_stride: Positions that a scoring window scores, the same for all arms; likewise.
        description: What is asked, in a sentence or two.
        shared: Configuration of `llp fit` that all runs have in common.
        learning_rate_seeds: Of the runs by whose mean validation loss an arm's learning rate is chosen; empty: `seeds`.
        extensions: How many rates may be added, one at a time, while the best one lies at an end of those tried.
        seeds: Of the runs that are tested at the chosen learning rate.
        noise_seeds: With which the reference is trained, at its chosen rate, to measure the noise; empty: `seeds`.
        budgets: What is held equal, each in a table of its own.
        warmup: Share of a run's steps in which the learning rate rises. Its decay ends with the run.
        validations: How often a run is validated, its end included.
        slices: Whether loss by position and on recall tokens is computed for the tested runs.
        primary: Contrasts named beforehand, `[first arm, second arm, budget]`.
        ablations: By name.
        assumed_rate: FLOP/s of a device that `--plan` counts with, before anything has been timed.

    Raises:
        SettingError: If a value can't be used.
    """

    name: str
    arms: dict[str, Settings]
    reference: str
    steps: int
    learning_rates: list[float]
    scoring_window_len: int | None = None
    scoring_stride: int | None = None
    description: str = ""
    shared: Settings = field(default_factory=dict)
    learning_rate_seeds: list[int] = field(default_factory=list)
    extensions: int = 2
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2])
    noise_seeds: list[int] = field(default_factory=list)
    budgets: list[Budget] = field(default_factory=lambda: ["windows"])
    warmup: float = 0.05
    validations: int = 4
    slices: bool = True
    primary: list[tuple[str, str, Budget]] = field(default_factory=list)
    ablations: dict[str, Ablation] = field(default_factory=dict)
    assumed_rate: float | None = None

    def __post_init__(self) -> None:
        plain = self.name.isprintable() and self.name not in ("", ".", "..") and "/" not in self.name
        require(plain, "name", repr(self.name), "it names a folder; choose one without slashes")
        self._check_arms()
        self._check_rates()
        self._check_lists()
        for setting, least in (("steps", 2), ("validations", 1), ("extensions", 0)):
            require(getattr(self, setting) >= least, setting, getattr(self, setting), f"set it to {least} or more")
        require(0 <= self.warmup < 1, "warmup", self.warmup, "it is a share of the steps: 0 or more, and below 1")
        self._check_primary()
        for name, ablation in self.ablations.items():
            self._check_ablation(name, ablation)

    def _check_arms(self) -> None:
        require(len(self.arms) > 0, "arms", self.arms, "name at least one")
        for arm, settings in self.arms.items():
            simple = arm.replace("_", "").isalnum()
            require(simple, "arms", repr(arm), "a run is named after it; use letters, digits and underscores")
            require("class_path" in settings, f"arms.{arm}", settings, "say which class it is: class_path: llp.LLP")
            unknown = sorted(settings.keys() - {"class_path", "init_args"})
            remedy = "an arm has class_path and init_args; what all have in common belongs to `shared`"
            require(not unknown, f"arms.{arm}", unknown, remedy)
        self._require_arm("reference", self.reference)

    def _check_rates(self) -> None:
        rates = self.learning_rates
        rising = len(rates) > 0 and rates[0] > 0 and rates == sorted(set(rates))
        require(rising, "learning_rates", rates, "give positive rates, each once, in rising order")
        remedy = "two rates or more show in which steps to go on; set extensions to 0 for a single one"
        require(len(rates) > 1 or self.extensions == 0, "learning_rates", rates, remedy)

    def _check_lists(self) -> None:
        for setting in ("seeds", "budgets"):
            require(len(getattr(self, setting)) > 0, setting, getattr(self, setting), "name at least one")
        for setting in ("seeds", "noise_seeds", "learning_rate_seeds", "budgets"):
            values = getattr(self, setting)
            require(len(set(values)) == len(values), setting, values, "name each once")

    def _check_primary(self) -> None:
        for first, second, budget in self.primary:
            self._require_arm("primary", first)
            self._require_arm("primary", second)
            require(first != second, "primary", first, "it is named against itself; name another arm")
            require(budget in self.budgets, "primary", budget, f"budgets = {self.budgets} does not hold it")
        pairs = [(frozenset(contrast[:2]), contrast[2]) for contrast in self.primary]
        require(len(set(pairs)) == len(pairs), "primary", self.primary, "name each pair of arms once a budget")

    def _check_ablation(self, name: str, ablation: Ablation) -> None:
        self._require_arm(f"ablations.{name}.arm", ablation.arm)
        for setting, values in ablation.together.items():
            remedy = f"give as many as values = {ablation.values}"
            require(len(values) == len(ablation.values), f"ablations.{name}.together.{setting}", values, remedy)

    def _require_arm(self, setting: str, arm: str) -> None:
        require(arm in self.arms, setting, arm, f"it is none of the arms: {', '.join(self.arms)}")

    def as_settings(self) -> Settings:
        """The specification as it would be written in YAML."""
        return {one.name: _plain(getattr(self, one.name)) for one in fields(self)}


def merged(*layers: Mapping[str, Any]) -> Settings:
    """Configurations one over the other, as `llp fit` merges its files."""
    result: Settings = {}
    for layer in layers:
        for key, value in layer.items():
            before = result.get(key)
            if isinstance(before, Mapping) and isinstance(value, Mapping):
                result[key] = merged(before, value)
            else:
                result[key] = value
    return result


def _plain(value: Any) -> Any:
    if isinstance(value, Ablation):
        return {one.name: _plain(getattr(value, one.name)) for one in fields(value)}
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
