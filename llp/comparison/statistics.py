"""How certain a difference between two arms is: intervals over seeds and documents, the noise floor, and verdicts."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

Verdict = Literal["better", "worse", "tie", "undecided"]

ALPHA = 0.05
RESAMPLES = 10_000
METHODS = ("multi-bootstrap", "paired t", "Welch's t")
"""The intervals of a difference."""
_CHUNK = 500
"""Resamples at a time: with a thousand documents, these take some megabytes."""


class Scores(NamedTuple):
    """The test scores of runs that differ by their seed alone."""

    seeds: list[int]
    nats: np.ndarray
    """(S, D): the total loss of each run on each document."""
    sizes: np.ndarray
    """(D,): what nats are divided by. For a text, its bytes times ln 2, which gives bits per byte; for a task, the
    number of its labels."""

    @property
    def metrics(self) -> np.ndarray:
        """(S,): each run's metric, a ratio of sums over the documents."""
        return self.nats.sum(axis=1) / self.sizes.sum()


class Interval(NamedTuple):
    """A 95 % confidence interval of a difference, and the two-sided p value of "no difference"."""

    low: float
    high: float
    p: float

    @property
    def width(self) -> float:
        """The distance between the ends."""
        return self.high - self.low


class Difference(NamedTuple):
    """The metric of one arm minus another's; lower is better."""

    estimate: float
    intervals: dict[str, Interval]
    """By method; empty for a single seed of a training, which says nothing about others."""
    seeds: list[int]
    """The seeds that both arms have; others are left out."""
    documents: int

    @property
    def method(self) -> str | None:
        """The method with the widest interval, which is the one that counts."""
        return max(self.intervals, key=lambda name: self.intervals[name].width, default=None)

    @property
    def interval(self) -> Interval | None:
        """The widest interval, with the largest of the p values."""
        if self.method is None:
            return None
        return self.intervals[self.method]._replace(p=max(interval.p for interval in self.intervals.values()))


class NoiseFloor(NamedTuple):
    """The spread of runs of one arm that differ by their seed alone."""

    deviation: float
    """Standard deviation of the metric over the seeds, with n - 1 in the denominator."""
    runs: int

    def smallest(self, n: int) -> float:
        """The noise floor of a difference between two arms with n seeds each.

        It is t(0.975; runs - 1) * deviation * sqrt(2 / n). The means of two equal arms lie further apart in one study
        of twenty. A smaller difference can't be told from a change of the seeds.
        """
        return float(stats.t.isf(ALPHA / 2, self.runs - 1)) * self.deviation * math.sqrt(1 / n + 1 / n)


def scores(runs: pd.DataFrame) -> Scores:
    """The scores of tested runs on the same documents."""
    documents, is_text = runs["documents"].iloc[0], runs["unit"].iloc[0] == "bits per byte"
    sizes = [row["bytes"] * math.log(2) if is_text else row["labels"] for row in documents]
    nats = [[row["nats"] for row in own] for own in runs["documents"]]
    return Scores(list(runs["seed"]), np.array(nats, dtype=float), np.array(sizes, dtype=float))


def noise_floor(runs: pd.DataFrame) -> NoiseFloor | None:
    """The noise floor from tested runs of one arm that differ by their seed alone; None for fewer than two.

    A model that was not trained has none: two runs of it would be equal.
    """
    if (runs["steps"] == 0).any():
        return NoiseFloor(0.0, 2)
    return NoiseFloor(float(np.std(scores(runs).metrics, ddof=1)), len(runs)) if len(runs) > 1 else None


def difference(first: pd.DataFrame, second: pd.DataFrame) -> Difference | None:
    """The difference of two arms' metrics, paired by seed and by document.

    The statistic is a ratio of sums: (nats of `first` - nats of `second`) / bytes / ln 2, each summed over the
    documents, averaged over the seeds that both have; for a task, nats are divided by the number of labels. Runs with
    the same seed take the same windows in the same order, which pairs them. With two seeds or more there are three
    intervals:

    - `multi-bootstrap` (arXiv 2106.16163): seeds and documents are both resampled with replacement, the same ones for
      both arms. The interval reaches from the 2.5 % to the 97.5 % quantile of 10,000 such differences; p is twice the
      smaller fraction of differences on one side of 0. It is too narrow for few seeds.
    - `paired t`: over the differences of each seed. It knows nothing of other documents.
    - `Welch's t`: the same without the pairing, and with a variance of its own for each arm.

    Models that were not trained have the first one, over documents alone.

    Args:
        first: Tested runs of one arm, each with a seed of its own.
        second: Those of the other arm, on the same documents.

    Returns:
        None if the arms have no seed in common.
    """
    seeds = sorted({*first["seed"]} & {*second["seed"]})
    if not seeds:
        return None
    a, b = (scores(side[side["seed"].isin(seeds)].sort_values("seed")) for side in (first, second))
    intervals = {}
    if not first["steps"].any() and len(a.sizes) > 1:
        intervals = {METHODS[0]: multi_bootstrap(a.nats - b.nats, a.sizes)}
    elif len(seeds) > 1:
        bootstrap = multi_bootstrap(a.nats - b.nats, a.sizes)
        found = (bootstrap, paired_t(a.metrics, b.metrics), welch_t(a.metrics, b.metrics))
        intervals = dict(zip(METHODS, found, strict=True))
    return Difference(float((a.metrics - b.metrics).mean()), intervals, seeds, len(a.sizes))


def multi_bootstrap(nats: np.ndarray, sizes: np.ndarray, resamples: int = RESAMPLES) -> Interval:
    """Percentile interval of sum(nats) / seeds / sum(sizes) when seeds and documents are resampled.

    Args:
        nats: (S, D) differences.
        sizes: (D,).
        resamples: Number of resamples; the draws are the same in each call.
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


def paired_t(first: np.ndarray, second: np.ndarray) -> Interval:
    """Student's t interval of the mean difference of two paired samples of two values or more each."""
    differences = first - second
    return _t_interval(lambda: stats.ttest_rel(first, second), float(differences.mean()), differences)


def welch_t(first: np.ndarray, second: np.ndarray) -> Interval:
    """Welch's t interval of the difference of the means of two samples of two values or more each."""
    mean = float(first.mean() - second.mean())
    return _t_interval(lambda: stats.ttest_ind(first, second, equal_var=False), mean, first, second)


def _t_interval(test: Callable[[], Any], mean: float, *samples: np.ndarray) -> Interval:
    if not any(np.ptp(sample) for sample in samples):  # all seeds agree to the last digit
        return Interval(mean, mean, 1.0 if mean == 0 else 0.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nearly equal values lose precision
        result = test()
        bounds = result.confidence_interval(1 - ALPHA)
    return Interval(float(bounds.low), float(bounds.high), float(result.pvalue))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's p values: the chance of one false claim among all of them is at most the level they are compared with.

    The k-th smallest of n, counted from 0, is multiplied by n - k, and none is less than the one before it.
    """
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(p_values), 0, -1)
    adjusted = np.maximum.accumulate(np.minimum(1.0, factors * np.array(p_values)[order])) if len(order) else order
    return [float(adjusted[rank]) for rank in np.argsort(order)]


def verdict(outcome: Difference, floor: NoiseFloor, p: float | None) -> Verdict:
    """What a difference says about the first of the two arms.

    - `tie`: its absolute value is at most the noise floor for these seeds.
    - `undecided`: it exceeds the noise floor, but the interval that counts includes 0, or p is above 5 %, or there is
      no interval because there is a single seed.
    - `better`, `worse`: neither of these, and it is less or greater than 0; metrics are losses.

    Args:
        outcome: The difference.
        floor: The noise floor.
        p: The p value after Holm's correction.
    """
    interval = outcome.interval
    if abs(outcome.estimate) <= floor.smallest(len(outcome.seeds)):
        return "tie"
    if interval is None or p is None or p > ALPHA or interval.low <= 0 <= interval.high:
        return "undecided"
    return "better" if outcome.estimate < 0 else "worse"
