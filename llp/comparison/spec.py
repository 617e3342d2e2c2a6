"""The specification of a comparison: what its YAML file says."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from llp.errors import require

Budget = Literal["windows", "positions", "flops", "seconds"]
Settings = dict[str, Any]
_NO_RESULT = ("path", "cache_dir", "check_training_tokens", "processes")
"""Settings of a data module that don't change any result: the location of text and tokens, and how they are read."""


@dataclass(frozen=True)
class Specification:
    """A comparison of architectures that are trained on the same windows in the same order and scored in the same way.

    Args:
        name: Name of the comparison's folder.
        arms: For each arm, the `class_path` and `init_args` of a model, merged into `shared`. Its `test_init_args`
            override `init_args` in the test.
        reference: The arm that the others are compared with, and whose budget they get.
        steps: Optimizer steps of the reference, and of all arms at equal `windows`. With 0, pretrained models are
            tested without training.
        learning_rates: Learning rates in increasing order, each tried for every arm under the first budget. Empty if
            `steps` is 0.
        scoring_window_len: Length of the scoring windows of all arms. Required for a text; a task defines its own.
        scoring_stride: Positions scored per scoring window. Required for a text; a task defines its own.
        description: The question that the comparison answers, in a sentence or two.
        shared: The part of the configuration of `llp fit` that all runs have in common.
        learning_rate_seeds: Seeds over which the loss is averaged to select a learning rate. Default: `seeds`.
        extensions: How many learning rates may be added, one at a time, while the best one is the lowest or highest.
        seeds: Seeds of the runs that are tested, at the selected learning rate.
        noise_seeds: Seeds of the runs of the reference that measure the noise floor. Default: `seeds`.
        budgets: What is held equal. Each budget has its own table.
        warmup: Fraction of a run's steps in which the learning rate rises.
        validations: Number of validations per run, including the one at its end.
        slices: Whether to compute the loss by position and on recall tokens for tested runs.
        primary: Preregistered contrasts, as `[first arm, second arm, budget]`.
        exploratory: Contrasts to report without a verdict, besides those with the reference. They may be added later.
        assumed_rate: FLOP/s that `--plan` assumes as long as nothing has been timed.
        assumed_price: Price of a device hour in dollars, from which `--plan` computes the cost of the runs.

    Raises:
        SettingError: If a value can't be used.
    """

    name: str
    arms: dict[str, Settings]
    reference: str
    steps: int
    learning_rates: list[float] = field(default_factory=list)
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
    exploratory: list[tuple[str, str, Budget]] = field(default_factory=list)
    assumed_rate: float | None = None
    assumed_price: float | None = None

    def __post_init__(self) -> None:
        require_file_name(self.name)
        for arm, settings in self.arms.items():
            is_plain = arm.replace("_", "").isalnum()
            require(is_plain, "arms", repr(arm), "runs are named after it; use letters, digits and underscores")
            remedy = "an arm has class_path and init_args; settings that all arms have in common belong in `shared`"
            known = {"class_path", "init_args", "test_init_args"}
            require({"class_path"} <= set(settings) <= known, f"arms.{arm}", settings, remedy)
        self._require_arm("reference", self.reference)
        rates = self.learning_rates
        is_rising = len(rates) > 0 and rates[0] > 0 and rates == sorted(set(rates)) if self.steps else not rates
        remedy = "give positive rates, each once, in increasing order; no rates if steps is 0"
        require(is_rising, "learning_rates", rates, remedy)
        remedy = "an extension needs the ratio of two rates; give two or more rates, or set extensions to 0"
        require(len(rates) != 1 or self.extensions == 0, "learning_rates", rates, remedy)
        for setting in ("seeds", "budgets", "noise_seeds", "learning_rate_seeds"):
            values = getattr(self, setting)
            require(len(set(values)) == len(values), setting, values, "give each value once")
            require(len(values) > 0 or "_" in setting, setting, values, "give at least one")
        if self.steps == 0:
            remedy = "without training nothing depends on the seed or the budget; give one seed, and only `windows`"
            require(len({*self.seeds, *self.noise_seeds}) == 1 and self.budgets == ["windows"], "steps", 0, remedy)
        for setting, least in (("steps", 2 if self.steps else 0), ("validations", 1), ("extensions", 0)):
            require(getattr(self, setting) >= least, setting, getattr(self, setting), f"set it to {least} or more")
        require(0 <= self.warmup < 1, "warmup", self.warmup, "it is a fraction of the steps: at least 0 and below 1")
        self._require_contrasts("primary", self.primary)
        self._require_contrasts("exploratory", self.exploratory)

    def _require_contrasts(self, setting: str, contrasts: list[tuple[str, str, Budget]]) -> None:
        for first, second, budget in contrasts:
            self._require_arm(setting, first)
            self._require_arm(setting, second)
            require(budget in self.budgets, setting, budget, f"it is not one of the budgets {self.budgets}")
        pairs = {(*sorted(pair), budget) for *pair, budget in contrasts if len(set(pair)) == 2}
        remedy = "a contrast is between two different arms; give each pair once per budget"
        require(len(pairs) == len(contrasts), setting, contrasts, remedy)

    def _require_arm(self, setting: str, arm: str) -> None:
        require(arm in self.arms, setting, arm, f"there is no such arm; the arms are {', '.join(self.arms)}")

    def model(self, arm: str) -> Settings:
        """The model of an arm, with what is shared, as `llp fit` takes it."""
        own = {key: value for key, value in self.arms[arm].items() if key != "test_init_args"}
        return merged(self.shared.get("model", {}), own)

    def as_settings(self) -> Settings:
        """The specification as it would be written in YAML."""
        contrasts = {"primary": self.primary, "exploratory": self.exploratory}
        return asdict(self) | {setting: [list(contrast) for contrast in those] for setting, those in contrasts.items()}


def require_file_name(name: str) -> None:
    """Raise a `SettingError` if the name of a comparison or sweep can't be the name of a folder."""
    is_one = name.isprintable() and name not in ("", ".", "..") and "/" not in name
    require(is_one, "name", repr(name), "it names a folder; choose a name without slashes")


def require_same_runs(kept: Settings, asked: Settings) -> None:
    """Raise a `SettingError` if a changed specification would make existing runs different ones.

    Arms, seeds, budgets, learning rates and contrasts may be added or removed.

    Args:
        kept: The specification with which the runs in the folder of the comparison or sweep were made.
        asked: The current specification.
    """
    remedy = (
        "the runs in its folder were made with another value; restore the value, or choose another name. "
        "If the change doesn't affect the runs, remove spec.yaml from the folder"
    )
    for setting in ("scoring_window_len", "scoring_stride", "warmup", "validations"):
        require(kept.get(setting) == asked.get(setting), setting, asked.get(setting), remedy)
    for part in sorted({*kept["shared"], *asked["shared"]}):
        before, now = (portable(settings["shared"]).get(part) for settings in (kept, asked))
        require(before == now, f"shared.{part}", now, remedy)
    for arm in kept.get("arms", {}).keys() & asked.get("arms", {}).keys():
        require(kept["arms"][arm] == asked["arms"][arm], f"arms.{arm}", asked["arms"][arm], remedy)


def portable(settings: Settings) -> Settings:
    """A configuration without settings that depend on the machine and change no result."""
    data, trainer = dict(settings.get("data", {})), dict(settings.get("trainer", {}))
    data["init_args"] = {key: value for key, value in data.get("init_args", {}).items() if key not in _NO_RESULT}
    trainer.pop("logger", None)
    return {**settings, "data": data, "trainer": trainer}


def merged(*layers: Mapping[str, Any]) -> Settings:
    """Configurations merged from left to right, as `llp fit` merges its files."""
    result: Settings = {}
    for layer in layers:
        for key, value in layer.items():
            before = result.get(key)
            is_nested = isinstance(before, Mapping) and isinstance(value, Mapping)
            result[key] = merged(before, value) if is_nested else value  # type: ignore[arg-type]
    return result
