"""How sure a difference between two contestants is: intervals over seeds and documents, and what counts as a tie."""

import math
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np

from llp.comparison.study import Record, Trial

Verdict = Literal["better", "worse", "tie", "undecided"]

ALPHA = 0.05
RESAMPLES = 10_000
METHODS = ("multi-bootstrap", "paired t", "Welch's t")
"""Of the intervals of a difference."""
_CHUNK = 500
"""Resamples at a time: a thousand documents then take some megabytes."""


class Scores(NamedTuple):
    """The test scores of runs that differ by their seed alone."""

    seeds: list[int]
    nats: np.ndarray
    """(S, D): the total loss of each run on each document."""
    sizes: np.ndarray
    """(D,): what nats are divided by. For a text its bytes times ln 2, so that the figure is bits per byte; for a task
    that has labels their number."""

    @property
    def figures(self) -> np.ndarray:
        """(S,): each run's figure, a ratio of sums over the documents."""
        return self.nats.sum(axis=1) / self.sizes.sum()


class Interval(NamedTuple):
    """A range that holds the true difference in 95 of 100 studies, and the two-sided p value of "no difference"."""

    low: float
    high: float
    p: float

    @property
    def width(self) -> float:
        """From the lower to the upper end."""
        return self.high - self.low


class Difference(NamedTuple):
    """The figure of one contestant minus another's; less is better."""

    estimate: float
    intervals: dict[str, Interval]
    """By method; empty with a single seed, which says nothing about others."""
    seeds: list[int]
    """Those that both have; others are left out."""
    documents: int

    @property
    def method(self) -> str | None:
        """The one whose interval counts: the widest."""
        return max(self.intervals, key=lambda name: self.intervals[name].width, default=None)

    @property
    def interval(self) -> Interval | None:
        """The widest, with the largest of the p values."""
        if self.method is None:
            return None
        return self.intervals[self.method]._replace(p=max(interval.p for interval in self.intervals.values()))


class NoiseFloor(NamedTuple):
    """How far runs of one contestant lie apart that differ by their seed alone."""

    deviation: float
    """Standard deviation of the figure over the seeds (n - 1 in the denominator)."""
    runs: int

    def smallest(self, n_first: int, n_second: int) -> float:
        """The noise floor of a difference between two contestants with so many seeds each.

        It is t(0.975; runs - 1) * deviation * sqrt(1 / n_first + 1 / n_second): the means of two equal contestants lie
        further apart than this in one study of twenty. What is less can't be told from a change of the seeds.
        """
        return t_quantile(ALPHA, self.runs - 1) * self.deviation * math.sqrt(1 / n_first + 1 / n_second)


def is_text(record: Record) -> bool:
    """Whether a tested run was scored on a text, which has bytes, rather than on a task's labels."""
    assert record.test is not None
    return bool(record.test["rows"][0].get("bytes"))


def document_rows(record: Record) -> list[dict[str, Any]]:
    """The rows of a test that are its documents; the row of the whole split, if that is all there is."""
    assert record.test is not None
    rows = record.test["rows"]
    return rows[1:] or rows


def scored_count(row: Mapping[str, Any]) -> int:
    """How many predictions a row of a test is of: the tokens of a text, or a task's labels."""
    return int(row["tokens"] if "tokens" in row else row["labels"])


def scores(records: Sequence[Record]) -> Scores:
    """The scores of tested runs on the same documents."""
    documents = document_rows(records[0])
    sizes = [row["bytes"] * math.log(2) if is_text(records[0]) else scored_count(row) for row in documents]
    nats = [[row["nats"] for row in document_rows(record)] for record in records]
    return Scores([record.seed for record in records], np.array(nats, dtype=float), np.array(sizes, dtype=float))


def noise_floor(records: Sequence[Record]) -> NoiseFloor | None:
    """The noise floor from the tested runs of one contestant that differ by their seed alone; None below two."""
    tested = [record for record in records if record.test is not None]
    if len(tested) < 2:
        return None
    return NoiseFloor(float(np.std(scores(tested).figures, ddof=1)), len(tested))


def difference(first: Sequence[Record], second: Sequence[Record]) -> Difference | None:
    """The difference of two contestants' figures, paired by seed and by document.

    The statistic is a ratio of sums: (nats of `first` - nats of `second`) / bytes / ln 2, each summed over the
    documents, averaged over the seeds that both have; for a task with labels nats are divided by their number. Runs of
    one seed take the same windows in the same order, which is what pairs them. With two seeds or more there are three
    intervals:

    - `multi-bootstrap` (arXiv 2106.16163): seeds and documents are both drawn anew, with replacement, and the same ones
      for both contestants; the 2.5 % and the 97.5 % quantile of 10,000 such differences. p is twice the smaller share
      of differences on one side of 0. With few seeds it is too narrow: they hold few values to draw from.
    - `paired t`: over the differences of each seed. It knows nothing of other documents.
    - `Welch's t`: the same without the pairing, and with an own variance for each contestant.

    Args:
        first: Tested runs of one contestant, each with a seed of its own.
        second: Those of the other one, on the same documents.

    Returns:
        None if they have no seed in common.
    """
    seeds = sorted({record.seed for record in first} & {record.seed for record in second})
    if not seeds:
        return None
    a, b = (scores(sorted((r for r in side if r.seed in seeds), key=lambda r: r.seed)) for side in (first, second))
    differences = a.figures - b.figures
    intervals = {}
    if len(seeds) > 1:
        bootstrap = multi_bootstrap(a.nats - b.nats, a.sizes)
        intervals = dict(zip(METHODS, (bootstrap, paired_t(differences), welch_t(a.figures, b.figures)), strict=True))
    return Difference(float(differences.mean()), intervals, seeds, len(a.sizes))


def multi_bootstrap(nats: np.ndarray, sizes: np.ndarray, resamples: int = RESAMPLES) -> Interval:
    """Percentile interval of sum(nats) / seeds / sum(sizes) when seeds and documents are drawn anew.

    Args:
        nats: (S, D) differences.
        sizes: (D,).
        resamples: How often; the draws are the same in each call.
    """
    n_seeds, n_documents = nats.shape
    random = np.random.default_rng(0)
    drawn = []
    for first in range(0, resamples, _CHUNK):
        size = min(_CHUNK, resamples - first)
        seeds = random.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), size)  # (R, S): how often each was drawn
        documents = random.multinomial(n_documents, np.full(n_documents, 1 / n_documents), size)  # (R, D)
        totals = ((seeds @ nats) * documents).sum(axis=1)  # (R,)
        drawn.append(totals / n_seeds / (documents @ sizes))
    values = np.concatenate(drawn)
    low, high = np.quantile(values, [ALPHA / 2, 1 - ALPHA / 2])
    side = min(np.count_nonzero(values <= 0), np.count_nonzero(values >= 0))
    return Interval(float(low), float(high), min(1.0, 2 * (side + 1) / (resamples + 1)))


def paired_t(differences: np.ndarray) -> Interval:
    """Student's t interval of the mean of (S,) differences, S >= 2."""
    n = len(differences)
    error = float(np.std(differences, ddof=1)) / math.sqrt(n)
    return _t_interval(float(differences.mean()), error, n - 1)


def welch_t(first: np.ndarray, second: np.ndarray) -> Interval:
    """Welch's t interval of the difference of the means of two samples of two values or more each."""
    parts = [float(np.var(sample, ddof=1)) / len(sample) for sample in (first, second)]
    squares = sum(part**2 / (len(sample) - 1) for part, sample in zip(parts, (first, second), strict=True))
    freedom = sum(parts) ** 2 / squares if squares else len(first) + len(second) - 2
    return _t_interval(float(first.mean() - second.mean()), math.sqrt(sum(parts)), freedom)


def _t_interval(mean: float, error: float, freedom: float) -> Interval:
    if error == 0:  # all seeds agree to the last digit
        return Interval(mean, mean, 1.0 if mean == 0 else 0.0)
    half = t_quantile(ALPHA, freedom) * error
    return Interval(mean - half, mean + half, t_tails(mean / error, freedom))


@cache
def t_quantile(alpha: float, freedom: float) -> float:
    """The t that |T| exceeds with probability `alpha`, for Student's T with `freedom` > 0 degrees of freedom."""
    low, high = 0.0, 1.0
    while t_tails(high, freedom) > alpha:
        low, high = high, 2 * high
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if t_tails(middle, freedom) > alpha else (low, middle)
    return high


def t_tails(t: float, freedom: float) -> float:
    """The probability of |T| >= |t| for Student's T with `freedom` > 0 degrees of freedom."""
    return _incomplete_beta(freedom / (freedom + t * t), freedom / 2, 0.5)


def _incomplete_beta(x: float, a: float, b: float) -> float:
    """The regularized incomplete beta function I_x(a, b), by its continued fraction (DLMF 8.17.22)."""
    if x in (0.0, 1.0):
        return x
    if x > (a + 1) / (a + b + 2):  # the fraction converges fast on the other side alone
        return 1 - _incomplete_beta(1 - x, b, a)
    scale = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    )  # x^a (1 - x)^b / B(a, b)
    fraction = 0.0
    for n in range(200, 0, -1):  # from the innermost term outwards: far more terms than float64 needs
        m = n // 2
        if n % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        fraction = term / (1 + fraction)
    return scale / (a * (1 + fraction))


def holm(p_values: Mapping[Any, float]) -> dict[Any, float]:
    """Holm's p values: the chance of one false claim among all of these is at most the level at which they are read.

    The k-th smallest of n, counted from 0, is multiplied by n - k, and none is less than one before it.
    """
    adjusted, largest = {}, 0.0
    for rank, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p))
        adjusted[name] = largest
    return adjusted


def verdict(outcome: Difference, floor: NoiseFloor, p: float | None) -> Verdict:
    """What a difference says about the first of the two contestants.

    - `tie`: its absolute value is at most the noise floor, `NoiseFloor.smallest` for the seeds of this difference.
    - `undecided`: it is above the noise floor, but the interval that counts includes 0, or p is above 5 %, or there is
      no interval, with a single seed.
    - `better`, `worse`: it is neither, and less or greater than 0; the figures are losses.

    Args:
        outcome: The difference.
        floor: Without one there is no verdict.
        p: After Holm's correction.
    """
    n, interval = len(outcome.seeds), outcome.interval
    if abs(outcome.estimate) <= floor.smallest(n, n):
        return "tie"
    if interval is None or p is None or p > ALPHA or interval.low <= 0 <= interval.high:
        return "undecided"
    return "better" if outcome.estimate < 0 else "worse"


class Sensitivity(NamedTuple):
    """How much a learning rate beside the best one costs."""

    mean: float
    """In nats per token."""
    rates: int
    """How many were tried and done."""


def final_loss(record: Record) -> float:
    """The validation loss of a finished run; infinite if it diverged."""
    loss = record.validation_loss
    return math.inf if loss is None or math.isnan(loss) else loss


def trial_loss(trial: Trial) -> float:
    """The mean validation loss over the seeds of a trial that is done; infinite if one of them diverged."""
    if trial.is_diverged:
        return math.inf
    return math.fsum(map(final_loss, trial.records)) / len(trial.records)


def best_trial(trials: Sequence[Trial]) -> Trial | None:
    """The one with the least mean validation loss, of those that have records; the lowest rate of equals."""
    return min((trial for trial in trials if trial.records), key=trial_loss, default=None)


def sensitivity(trials: Sequence[Trial]) -> Sensitivity | None:
    """Learning-rate sensitivity (arXiv 2309.14322) over the rates that were tried and done; None if none is.

    The mean over the rates, and the seeds of each, of min(loss, ln V), less the least of these means: validation losses
    in nats per token; V is the size of the vocabulary, and ln V the loss at the start, when all tokens are equally
    likely. 0: the rate doesn't matter. Where a run's settings don't say V, nothing is capped.
    """
    best = best_trial(trials)
    if best is None:
        return None
    size = vocabulary(best.records[0])
    start = math.inf if size is None else math.log(size)
    losses = [_capped_loss(trial, start) for trial in trials if trial.is_done]
    return Sensitivity(math.fsum(losses) / len(losses) - min(losses), len(losses))


def _capped_loss(trial: Trial, start: float) -> float:
    """The mean over the seeds of a trial that is done, each at most `start`, as which a diverged one counts."""
    losses = [final_loss(record) for record in trial.records] or [math.inf]
    return math.fsum(min(loss, start) for loss in losses) / len(losses)


def vocabulary(record: Record) -> int | None:
    """The size of a run's vocabulary, where its settings say it: the model's, or the one asked of the tokenizer."""
    data = record.settings.get("data", {}).get("init_args", {})
    tokenizer = data.get("tokenizer") or {}
    for settings in (record.settings.get("model", {}).get("init_args", {}), tokenizer.get("init_args", {}), data):
        if settings.get("vocab_size"):
            return int(settings["vocab_size"])
    return None
