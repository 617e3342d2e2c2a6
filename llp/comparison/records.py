"""What is known of runs: records, failures, trials, and the table with a row for each run."""

import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pandas as pd

from llp.comparison.spec import Settings

RATE, NOISE = "rate", "noise floor"
"""The uses of a run that are not a budget: choosing a learning rate, measuring the noise floor."""


@dataclass(frozen=True)
class Record:
    """What is kept of a run. `records/<run>.json` holds exactly these fields."""

    run: str
    """The run's name, `<arm>-lr<learning rate>-steps<steps>-s<seed>`."""
    arm: str
    class_path: str
    seed: int
    learning_rate: float
    steps: int
    """Optimizer steps."""
    settings: Settings
    """The configuration of the run, without what is particular to a machine."""
    commands: list[str]
    """The commands that repeat the run."""
    parameters: int
    pairs_per_window: float
    """Query-key pairs of a head in a training window, summed over the layers."""
    flops_per_window: int
    """FLOPs of the forward and the backward pass of a training window."""
    positions_per_window: int
    """Positions with a loss in a training window."""
    windows: int
    """Training windows in the whole run."""
    curve: list[dict[str, float | None]]
    """`step`, `loss` and `bits_per_byte` of each validation; the last one is that of the finished run. What is not a
    finite number is None."""
    test: dict[str, Any] | None
    """What `test.json` holds, without what would differ if the run were repeated; None for a run that only serves to
    choose a learning rate."""
    slices: dict[str, Any] | None
    """The contents of `slices.json`, written by `llp predict`: loss by position, and on recall tokens by distance."""
    hashes: dict[str, str]
    """Digests: `initial_weights` (V3's map left out), `training_windows`, `first_<k>_batches` for k = 1, 2, 4, ...,
    `data` (the text of all splits), `tokenizer` and `final_weights`."""
    commit: str | None
    """The commit of the source that trained the run; None if unknown."""
    versions: dict[str, str]
    device: str

    @property
    def validation_loss(self) -> float:
        """The validation loss of the finished run, in nats per token; infinite if not finite, or if there is none."""
        loss = self.curve[-1]["loss"] if self.curve else None
        return math.inf if loss is None or math.isnan(loss) else loss

    def columns(self) -> dict[str, Any]:
        """The record as a row of the table: its fields, and what the report derives from them.

        Digests, the data's settings and the protocol of the test have a column each, `hashes.data`, `data.window_len`,
        `protocol.stride`.
        """
        model, data = (self.settings.get(part, {}).get("init_args", {}) for part in ("model", "data"))
        # Parameters of V3's compressing map, which no other architecture has.
        is_v3 = self.class_path.endswith(".CompressedAttention")
        map_size = (model.get("history_len") or 0) * (model.get("compressed_len") or 0) if is_v3 else 0
        protocol = (self.test or {}).get("protocol", {})
        prefixed = {"hashes": self.hashes, "data": data, "protocol": protocol}
        return {
            **vars(self),
            **{f"{prefix}.{key}": value for prefix, values in prefixed.items() for key, value in values.items()},
            "validation_loss": self.validation_loss,
            "positions": self.windows * self.positions_per_window,
            "flops": self.windows * self.flops_per_window,
            "size": self.parameters - map_size,
            **({} if self.test is None else _test_columns(self.test["rows"], protocol)),
        }


def _test_columns(rows: list[dict[str, Any]], protocol: dict[str, Any]) -> dict[str, Any]:
    whole, documents = rows[0], rows[1:] or rows
    is_text = bool(whole.get("bytes"))
    metric = whole["bits_per_byte" if is_text else "loss"]
    sizes = [[row.get(name) for name in ("document", "tokens", "labels", "words", "bytes")] for row in documents]
    certificate = protocol.get("certificate")
    return {
        "unit": "bits per byte" if is_text else "nats per label",
        "metric": math.nan if metric is None else metric,
        "whole": whole,
        "documents": documents,
        "document_sizes": f"{len(documents)}: {hashlib.sha256(str(sizes).encode()).hexdigest()}",
        "is_finite": all(row["nats"] is not None and math.isfinite(row["nats"]) for row in rows),
        "is_complete": protocol.get("complete"),
        "is_causal": isinstance(certificate, dict) and certificate.get("causal") is True,
    }


class Contrast(NamedTuple):
    """A difference under a budget: the metric of `first` minus that of `second`."""

    first: str
    second: str
    budget: str


class Failure(NamedTuple):
    """How a run failed."""

    last_words: str
    is_diverged: bool
    """Whether the loss or the gradient was not finite. Any other failure says nothing about the run's settings."""


@dataclass(frozen=True)
class Timing:
    """The result of the timing pass, in which all arms take turns. A record holds no time: it would never repeat."""

    seconds_per_step: Mapping[str, float]
    how: Mapping[str, Any]
    """`device`, `threads` and `rounds` of the pass."""


class Trial(NamedTuple):
    """A learning rate that is tried for an arm."""

    learning_rate: float
    outcomes: list[float | None]
    """The final validation loss of each seed: None if the run is missing, infinite if it diverged."""

    @property
    def loss(self) -> float | None:
        """The mean over the seeds; None if a run is missing and none has diverged."""
        if math.inf in self.outcomes:
            return math.inf
        known = [loss for loss in self.outcomes if loss is not None]
        return math.fsum(known) / len(known) if len(known) == len(self.outcomes) else None


def best_trial(trials: Iterable[Trial]) -> Trial | None:
    """The finished trial with the lowest finite loss; of equal ones the first."""
    done = [(trial.loss, trial) for trial in trials if trial.loss is not None and trial.loss < math.inf]
    return min(done, key=lambda one: one[0])[1] if done else None


_COLUMNS = (
    *Record.__dataclass_fields__, "uses", "state", "validation_loss", "positions", "flops", "size", "unit",
    "metric", "whole", "documents", "document_sizes", "is_finite", "is_complete", "is_causal", "data.window_len",
    "hashes.training_windows", "hashes.initial_weights", "hashes.data", "hashes.tokenizer", "protocol.window_len",
    "protocol.stride", "protocol.data_fingerprint", "protocol.tokenizer_fingerprint",
)  # fmt: skip


def run_table(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """The table of runs from its rows, indexed by the names of the runs; what a row doesn't have is None."""
    listed = list(rows)
    nothing: dict[str, Any] = dict.fromkeys([*_COLUMNS, *(key for row in listed for key in row)])
    table = pd.DataFrame([{**nothing, **row} for row in listed], columns=list(nothing), dtype=object)
    return table.set_axis(pd.Index(table["run"], dtype=object, name=None))
