"""The report: what it says of comparisons whose truth is known, from whole and from half-finished studies."""

import math

import pytest

from helpers.comparison import (
    FLOPS,
    changed,
    record,
    records,
    slices,
    study,
    trials,
)
from llp.comparison import plots
from llp.comparison.records import Contrast, Failure
from llp.comparison.report import Report

PLOTS = ["contrasts.png", "cost.png", "position.png", "recall.png"]


def report(records, *arguments, **changes):
    return Report(study(records, *arguments, **changes), "llp compare synthetic.yaml")


def with_bits(arm, bits):
    """An arm's runs with these bits per byte on all documents, by seed."""
    made = [record(arm, seed, [level] * 5) for seed, level in enumerate(bits)]
    return {run.run: run for run in made}


def test_the_same_records_give_the_same_bytes(tmp_path):
    paths = report(records()).write(tmp_path)
    before = {path: path.read_bytes() for path in paths}
    names = ["contrasts.csv", "report.csv", "report.md", "runs.csv", *PLOTS]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in paths) == sorted(names)
    assert report(records()).write(tmp_path) == paths
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_identical_arms_are_a_tie():
    bits = [1.9, 1.903, 1.899]
    made = {**records(), **with_bits("llp", bits), **with_bits("window", bits)}
    text = report(made, primary=[("window", "llp", "windows")]).text
    found = "- **window and llp are a tie** at equal windows: they differ by 0.0000 bits per byte, the noise floor is "
    (line,) = [line for line in text.splitlines() if line.startswith(found)]
    assert "(95 % interval " in line  # how far apart they may be all the same
    assert any(
        line.startswith("| window - llp | equal windows | +0.0000 |") and line.endswith("| 1.000 | tie |")
        for line in text.splitlines()
    )


def test_an_arm_made_worse_is_found_with_its_sign_and_size():
    """By 0.1 bits per byte on each document, in every seed; and better, seen from the other side."""
    bits = [1.9, 1.903, 1.899, 1.902, 1.901]
    made = {**records(), **with_bits("dense", bits), **with_bits("llp", [one + 0.1 for one in bits[:3]])}
    found = report(made)
    assert "- **llp is worse than dense** by 0.1000 bits per byte at equal windows" in found.text
    other_way_round = report(made, primary=[("dense", "llp", "windows")]).text
    assert "- **dense is better than llp** by 0.1000 bits per byte at equal windows" in other_way_round
    low, high, _ = found.named[1].outcome.interval
    assert low <= 0.1 + 1e-12 <= high + 2e-12


@pytest.mark.parametrize(("step", "words"), [(1e-6, "is undecided"), (0.1, "are a tie")])
def test_a_small_difference_is_undecided_above_the_floor_and_a_tie_below_it(step, words):
    made = {**records(), **with_bits("dense", [1.9 + step * seed for seed in range(5)])}
    made.update(with_bits("llp", [1.92, 1.89, 1.9]))
    assert f"{words}** at equal windows: " in report(made, ["dense", "llp"]).text


def test_without_a_noise_floor_there_is_no_verdict():
    found = report(records(), noise_seeds=[0])
    assert found.text.count("no verdict before the noise floor is known") == 2
    assert [one.verdict for one in found.named] == [None, None]


def test_what_may_not_be_compared_is_not():
    """The check says why, and neither a sentence nor a table has a difference; others are compared."""
    text = report(changed(records(), "llp", [0], hashes={"training_windows": "x"})).text
    reason = "llp-lr0.003-steps100-s0: training windows x, others 800 win"
    assert f"- **llp and dense can't be compared** at equal windows: {reason}" in text
    assert "- ✗ Runs of one seed and length took the same training windows\n  - " + reason in text
    assert "- ✓ All read the same text with the same tokenizer" in text
    assert "| llp - dense | equal windows | - | - | - | - | - | - | - | not comparable |" in text
    assert "- **window is worse than dense**" in text


def with_lost(arm, seed, nothing):
    """The records of a comparison in which the test of a run has no finite loss."""
    rows = records()[f"{arm}-lr0.003-steps100-s{seed}"].test["rows"]
    lost = [{**row, "nats": nothing, "loss": nothing, "bits_per_byte": nothing} for row in rows]
    return changed(records(), arm, [seed], test={"rows": lost})


@pytest.mark.parametrize("nothing", [None, math.nan])
def test_a_diverged_run_is_not_compared(nothing):
    text = report(with_lost("llp", 0, nothing)).text
    assert "**llp and dense can't be compared** at equal windows: llp-lr0.003-steps100-s0: it diverged" in text
    assert "Noise floor: not known yet" in report(with_lost("dense", 4, nothing)).text


def test_missing_runs_are_said():
    words = "llp fit: error: guard.max_skipped_steps = 0: the loss is nan. Windows:\n  sample 3\nLower learning_rate."
    failed = {
        "window-lr0.01-steps100-s100": Failure("Traceback\nout of memory", False),
        "llp-lr0.01-steps100-s100": Failure(words, True),
    }
    left_out = {*failed, "llp-lr0.003-steps100-s2"}
    text = report({name: one for name, one in records().items() if name not in left_out}, failed=failed).text
    assert "1 missing, 2 failed. More will follow, once a learning rate is chosen for window. To continue:" in text
    assert "- `window-lr0.01-steps100-s100` failed: out of memory\n" in text
    diverged = "llp fit: error: guard.max_skipped_steps = 0: the loss is nan. Windows:"
    assert f"- `llp-lr0.01-steps100-s100` diverged: {diverged}\n" in text
    not_known = "not known yet; window has 0 and dense has 3 of 3 tested runs."
    assert f"**window against dense** at equal windows: {not_known}" in text
    assert "2 of 3 seeds, 5 documents" in text


def test_nothing_is_done_yet():
    found = report({})
    assert "0 runs done, 9 missing, 0 failed." in found.text
    assert "More will follow, once a learning rate is chosen for dense, window, llp." in found.text
    assert "No run has been tested yet." in found.text
    assert "- ? No test loss is infinite: nothing to check" in found.text
    assert "✓" not in found.text
    assert found.runs.empty
    assert found.plots == {}


def test_every_pair_is_judged_once():
    """LLP and the window train all positions: equal positions are equal windows. FLOPs has other runs of LLP.

    A contrast that is asked for is added, or turns one with the reference round.
    """
    budgets, primary = ["windows", "positions", "flops"], [("dense", "llp", "windows"), ("llp", "window", "flops")]
    asked = [("dense", "window", "windows"), ("llp", "window", "windows"), ("window", "llp", "flops")]
    found = report(records(), budgets=budgets, primary=primary, exploratory=asked, flops={"llp": FLOPS // 2})
    assert [one.contrast for one in found.named] == primary
    assert [one.contrast for one in found.exploratory] == [
        Contrast("dense", "window", "windows"),
        Contrast("llp", "dense", "flops"),
        Contrast("llp", "window", "windows"),
    ]
    assert [one.verdict for one in found.exploratory] == [None] * 3


def test_holm_counts_contrasts_that_are_missing():
    """Two were named, one is done: its p value is twice the uncorrected one."""
    primary = [("llp", "dense", "windows"), ("llp", "dense", "flops")]
    named = report(records(), budgets=["windows", "flops"], primary=primary, flops={"llp": FLOPS // 2}).named
    assert named[0].p == pytest.approx(2 * named[0].outcome.interval.p)
    assert (named[1].p, named[1].verdict) == (None, None)


def test_the_forest_shows_intervals_and_floors():
    found = report(records())
    (axes,) = found.plots["contrasts.png"].axes
    points = [line for line in axes.lines if len(line.get_xdata()) == 1]
    bars = [line for line in axes.lines[1:] if len(line.get_xdata()) == 2]
    assert [line.get_xdata()[0] for line in points] == [one.outcome.estimate for one in found.named]
    assert [list(line.get_xdata()) for line in bars] == [list(one.outcome.interval[:2]) for one in found.named]
    floors = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in axes.patches]
    assert floors == [pytest.approx((-one.floor, one.floor)) for one in found.named]


def test_the_loss_is_drawn_over_what_it_cost():
    left, right = plots.loss_over_cost(study(records(), seconds={"dense": 0.1, "llp": 0.3})).axes
    dense = left.lines[0]
    assert list(dense.get_xdata()) == pytest.approx([step * 8 * FLOPS for step in (20, 40, 60, 80, 100)])
    assert list(dense.get_ydata()) == pytest.approx([entry["loss"] for entry in record().curve])
    assert {line.get_label(): line.get_xdata()[-1] for line in right.lines} == pytest.approx({"dense": 10, "llp": 30})


def test_the_loss_by_position_is_less_that_of_the_reference():
    """Runs without slices, and slices without tokens, are left out."""
    own = slices(2.0)
    own["position"][3] = {**own["position"][3], "tokens": 0, "nats": 0.0}
    made = {**records(), **with_bits("dense", [1.9] * 5), **with_bits("window", [1.95] * 3)}
    made = changed(changed(made, "llp", [0], slices=None), "llp", [1, 2], slices=own)
    (axes,) = report(made).plots["position.png"].axes
    lines = {line.get_label(): line for line in axes.lines}
    assert "dense" not in lines
    middles = [1.5 * 2**k - 0.5 for k in range(10)]
    assert list(lines["window"].get_xdata()) == middles
    assert list(lines["window"].get_ydata()) == pytest.approx([0.05] * 10)
    assert list(lines["llp"].get_xdata()) == [*middles[:3], *middles[4:]]
    assert list(lines["llp"].get_ydata()) == pytest.approx([0.1] * 9)


def test_the_learning_rates():
    """`edge` says that nothing beyond the best was tried; of rates that are not all done none is the best."""
    made = records()
    made.update({run.run: run for run in trials("llp", (2.5, 2.7, 2.8))})
    del made["window-lr0.01-steps100-s100"]
    failed = {"window-lr0.01-steps100-s100": Failure("", True)}
    text = report(made, failed=failed).text
    assert "| dense | 2.7000 | **2.5000** | 2.8000 |" in text
    assert "| window | 2.7000 | **2.5000** | diverged |" in text
    assert "| llp | **2.5000** edge | 2.7000 | 2.8000 |" in text
    assert "| window | 2.7000 | 2.5000 | - |" in report(made).text
