"""Intervals, noise floor, ties and Holm: against scipy, and over many comparisons whose truth is known."""

import math
from itertools import product

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from helpers import comparison
from helpers.comparison import Losses, record
from llp.comparison.records import Trial, run_table
from llp.comparison.statistics import (
    Difference,
    Interval,
    NoiseFloor,
    difference,
    holm,
    multi_bootstrap,
    noise_floor,
    paired_t,
    verdict,
    welch_t,
)


def runs(*records):
    return run_table(record.columns() for record in records)


def finals(*arguments, **changes):
    return runs(*comparison.finals(*arguments, **changes))


def test_intervals_over_seeds_are_scipy_s():
    random = np.random.default_rng(1)
    a, b = random.standard_normal(4), 3 * random.standard_normal(4) + 2
    paired, ours = stats.ttest_rel(a, b), paired_t(a, b)
    bounds = paired.confidence_interval()
    assert ours == pytest.approx((bounds.low, bounds.high, paired.pvalue), rel=1e-10)
    unpaired, ours = stats.ttest_ind(a, b[:3], equal_var=False), welch_t(a, b[:3])
    bounds = unpaired.confidence_interval()
    assert ours == pytest.approx((bounds.low, bounds.high, unpaired.pvalue), rel=1e-10)


def test_the_bootstrap_draws_seeds_and_documents():
    """Against all equally likely draws of two seeds and three documents, enumerated."""
    nats, sizes = np.array([[3.0, -1.0, 2.0], [5.0, 4.0, -2.0]]), np.array([1.0, 2.0, 4.0])
    values = [
        nats[np.ix_(seeds, documents)].sum() / 2 / sizes[list(documents)].sum()
        for seeds, documents in product(product(range(2), repeat=2), product(range(3), repeat=3))
    ]
    ours = multi_bootstrap(nats, sizes, 100_000)
    assert ours[:2] == pytest.approx(np.quantile(values, [0.025, 0.975], method="inverted_cdf"), abs=0.02)
    share = min(np.mean(np.array(values) <= 0), np.mean(np.array(values) >= 0))
    assert ours.p == pytest.approx(2 * share, abs=0.01)


def test_a_difference_is_a_ratio_of_sums():
    """Not a mean over documents of their figures: a long document counts more. By hand."""
    first = runs(*(record("a", seed, [2.0, 1.0], sizes=[3000, 1000]) for seed in (0, 1)))
    second = runs(*(record("b", seed, [1.0, 1.0], sizes=[3000, 1000]) for seed in (0, 1)))
    assert difference(first, second).estimate == pytest.approx((3000 * 2 + 1000 - 4000) / 4000)
    assert difference(second, first).estimate == pytest.approx(-0.75)
    assert difference(first, second).documents == 2


def test_seeds_are_paired():
    """What a seed adds to both arms is in neither of the paired intervals, and in Welch's."""
    losses = Losses({"a": 2.0, "b": 2.1}, own=0.001, order=0.1)
    outcome = difference(finals(losses, "b", range(4)), finals(losses, "a", reversed(range(5))))
    assert outcome.seeds == [0, 1, 2, 3]
    assert outcome.estimate == pytest.approx(0.1, abs=0.005)
    assert outcome.intervals["paired t"].width < 0.01
    assert outcome.intervals["multi-bootstrap"].width < 0.01
    assert outcome.intervals["Welch's t"].width > 0.1
    assert outcome.method == "Welch's t"
    assert outcome.interval.p == outcome.intervals["Welch's t"].p


def test_one_seed_has_no_interval_and_none_in_common_no_difference():
    losses = Losses({"a": 2.0, "b": 2.5})
    outcome = difference(finals(losses, "b", [0]), finals(losses, "a", [0, 1]))
    assert (outcome.interval, outcome.method) == (None, None)
    assert verdict(outcome, NoiseFloor(0.01, 5), None) == "undecided"
    assert difference(finals(losses, "b", [2]), finals(losses, "a", [0, 1])) is None


def test_the_interval_that_counts_is_the_widest_with_the_largest_p():
    outcome = Difference(
        0.0, {"x": Interval(-1, 1, 0.2), "y": Interval(-2, 0, 0.1), "z": Interval(-1, 1.5, 0.1)}, [], 1
    )
    assert outcome.method == "z"
    assert outcome.interval == Interval(-1, 1.5, 0.2)


@pytest.mark.parametrize(("n_seeds", "taste"), [(3, 0.0), (5, 0.02)])
def test_intervals_hold_the_truth_in_95_of_100_studies(n_seeds, taste, monkeypatch):
    """Never less often; how often they hold it exactly is in docs/comparison.md."""
    monkeypatch.setattr(multi_bootstrap, "__defaults__", (400,))
    held, seeds = 0, range(n_seeds)

    def drawn(arm):
        nats = [losses.draw(arm, seed) * 1000 * math.log(2) for seed in seeds]
        documents = [[{"bytes": 1000, "nats": value} for value in run] for run in nats]
        return pd.DataFrame({"seed": seeds, "steps": 1, "unit": "bits per byte", "documents": documents})

    for study in range(150):
        losses = Losses({"a": 2.0, "b": 2.1}, study, own=0.01, order=0.01, taste=taste, sizes=[1000] * 40)
        outcome = difference(drawn("b"), drawn("a"))
        held += outcome.interval.low <= 0.1 <= outcome.interval.high
    assert held / 150 > 0.95 - 1.65 * math.sqrt(0.05 * 0.95 / 150)


def test_the_noise_floor_by_hand():
    """The published example: a standard deviation of 0.0019 nats, five runs."""
    assert NoiseFloor(0.0019, 5).smallest(3) == pytest.approx(2.776 * 0.0019 * math.sqrt(2 / 3), rel=1e-3)
    flat = runs(*(record("a", seed, [level] * 5) for seed, level in enumerate((2.0, 2.1, 2.2))))
    assert noise_floor(flat) == pytest.approx((0.1, 3))
    assert noise_floor(flat[:1]) is None
    assert noise_floor(flat[:0]) is None


@pytest.mark.parametrize(
    ("estimate", "interval", "p", "expected"),
    [
        (0.5, Interval(0.1, 0.9, 0.01), 0.01, "tie"),  # sure, and too small to matter
        (2.0, Interval(1.0, 3.0, 0.01), 0.01, "worse"),
        (-2.0, Interval(-3.0, -1.0, 0.01), 0.04, "better"),
        (2.0, Interval(1.0, 3.0, 0.04), 0.08, "undecided"),  # not after Holm's correction
        (2.0, Interval(-1.0, 5.0, 0.01), 0.01, "undecided"),
    ],
)
def test_verdicts(estimate, interval, p, expected):
    outcome = Difference(estimate, {"x": interval}, [0, 1, 2], 5)
    floor = NoiseFloor(1.0 / NoiseFloor(1.0, 5).smallest(3), 5)  # of exactly 1
    assert verdict(outcome, floor, p) == expected


def test_holm_by_hand():
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(
    ("outcomes", "loss"),
    [([2.0, 3.0], 2.5), ([2.0, None], None), ([2.0, math.inf], math.inf), ([math.inf, None], math.inf)],
)
def test_the_loss_of_a_trial_is_the_mean_over_its_seeds_once_that_is_known(outcomes, loss):
    assert Trial(1e-3, outcomes).loss == loss
