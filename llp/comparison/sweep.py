"""A grid or a random search over settings of `llp fit`."""

import itertools
import math
import random
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from llp.comparison.folder import ComparisonFolder
from llp.comparison.spec import Settings, merged, require_file_name
from llp.comparison.workers import Work
from llp.errors import require

_SET_HERE = ("name", "ckpt_path", "trainer.default_root_dir")


@dataclass(frozen=True)
class Sweep:
    """A grid or a random search over settings of `llp fit`.

    Args:
        name: The name of the sweep's folder.
        settings: By their dotted names in the configuration of `llp fit`, `model.init_args.learning_rate` say, the
            values to try: a list, or, for a random search, also `{low: 1e-4, high: 1e-1, log: true}`. Between two
            integers, integers are drawn, both ends included. `log` draws uniformly on a logarithmic scale.
        shared: The part of the configuration that all runs have in common.
        samples: How many runs a random search has. By default all combinations are run, a grid.
        seed: Of a random search. A search with more samples begins with the same ones.

    Raises:
        SettingError: If a value can't be used.
    """

    name: str
    settings: dict[str, Any]
    shared: Settings = field(default_factory=dict)
    samples: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        require_file_name(self.name)
        require(len(self.settings) > 0, "settings", "{}", "name at least one setting and its values")
        require(self.samples is None or self.samples >= 1, "samples", self.samples, "set it to 1 or more")
        for name, values in self.settings.items():
            setting = f"settings.{name}"
            require(name not in _SET_HERE, setting, values, "llp sweep sets it; leave it out")
            if isinstance(values, Mapping):
                remedy = "a range is for a random search; set samples, or give a list of values"
                require(self.samples is not None, setting, values, remedy)
                _range(setting, values)
            else:
                remedy = "give a list of values, or {low: ..., high: ...} for a random search"
                require(isinstance(values, list) and len(values) > 0, setting, values, remedy)

    @cached_property
    def runs(self) -> dict[str, Settings]:
        """The values by the dotted names of the settings, of each run in order.

        A run is named `learning_rate=0.003,dim=64`, by what distinguishes it from the others.

        Raises:
            SettingError: If two of a grid have the same name.
        """
        combinations = list(self._grid() if self.samples is None else self._draws())
        named = {self._name(values): values for values in combinations}
        remedy = "two of their values are the same, or give the same name of a run; leave one out"
        require(self.samples is not None or len(named) == len(combinations), "settings", list(self.settings), remedy)
        return named

    def _grid(self) -> Iterator[Settings]:
        for values in itertools.product(*self.settings.values()):
            yield dict(zip(self.settings, values, strict=True))

    def _draws(self) -> Iterator[Settings]:
        generator = random.Random(self.seed)
        for _ in range(self.samples or 0):
            yield {
                name: generator.choice(values)
                if isinstance(values, list)
                else _range(f"settings.{name}", values).draw(generator)
                for name, values in self.settings.items()
            }

    def _name(self, values: Settings) -> str:
        """The run's name: the last part of each setting's name that isn't `class_path`, and its value."""
        short = [name.removesuffix(".class_path").rpartition(".")[2] for name in values]
        names = [one if short.count(one) == 1 else name for one, name in zip(short, values, strict=True)]
        return ",".join(f"{name}={_text(value)}" for name, value in zip(names, values.values(), strict=True))

    def configuration(self, run: str) -> Settings:
        """The configuration of `llp fit` for a run."""
        nested: list[Settings] = []
        for name, value in self.runs[run].items():
            for part in reversed(name.split(".")):
                value = {part: value}
            nested.append(value)
        return merged(self.shared, *nested)

    def as_settings(self) -> Settings:
        """The sweep as it would be written in YAML."""
        return asdict(self)


class _Range(NamedTuple):
    low: float
    high: float
    is_log: bool

    def draw(self, generator: random.Random) -> float:
        """A number with three digits, as somebody would write it; an integer n stands for the interval to n + 1."""
        is_int = isinstance(self.low, int) and isinstance(self.high, int)
        end = self.high + is_int
        if self.is_log:
            drawn = math.exp(generator.uniform(math.log(self.low), math.log(end)))
        else:
            drawn = generator.uniform(self.low, end)
        return int(min(drawn, self.high)) if is_int else float(f"{drawn:.3g}")


def _range(setting: str, values: Mapping[str, Any]) -> _Range:
    try:
        # YAML takes 1e-4, without a point, for a text.
        low, high = (float(end) if isinstance(end, str) else end + 0 for end in (values["low"], values["high"]))
    except (KeyError, TypeError, ValueError):
        low = high = 0
    log = values.get("log", False)
    is_one = values.keys() <= {"low", "high", "log"} and low < high and isinstance(log, bool)
    require(is_one, setting, values, "a range is {low: ..., high: ..., log: true or false}, with low below high")
    require(not log or low > 0, setting, values, "with log: true, low must be above 0")
    return _Range(low, high, log)


def _text(value: Any) -> str:
    """A value as a part of a file's name; of a class only its own name."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    text = text.rpartition(".")[2] if text.startswith(("llp.", "datamodules.")) else text
    return re.sub(r"[^\w.+-]+", "_", text)


class SweepWork(Work):
    """The runs of a sweep: each is trained, and nothing but its folder is kept."""

    def __init__(self, sweep: Sweep, folder: ComparisonFolder) -> None:
        self.sweep, self.folder, self.names, failed = sweep, folder, list(sweep.runs), folder.failed()
        self.states = {name: "failed" if name in failed else folder.state(name) or "to do" for name in self.names}
        self.to_do = [name for name, state in self.states.items() if state not in ("finished", "failed")]

    def settings(self, name: str) -> Settings:
        return self.sweep.configuration(name)
