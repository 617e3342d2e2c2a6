"""The report: what it says of comparisons whose truth is known, from whole and from half-finished studies."""

import math
from dataclasses import replace

import numpy as np
import pytest

from helpers.comparison import (
    LEVELS,
    RATES,
    Losses,
    Tried,
    finals,
    record,
    slices,
    study,
    text_rows,
    trials,
)
from llp.comparison import plots
from llp.comparison.report import Report
from llp.comparison.study import Contrast, Failure

PLOTS = ["contrasts.png", "cost.png", "position.png", "recall.png", "learning_rates.png"]


def compose(made):
    return Report(made.study())


def test_the_same_records_give_the_same_bytes(tmp_path):
    paths = compose(study()).write(tmp_path)
    before = {path: path.read_bytes() for path in paths}
    names = ["contrasts.csv", "report.csv", "report.md", "runs.csv", *PLOTS]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in paths) == sorted(names)
    assert compose(study()).write(tmp_path) == paths
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_identical_arms_are_a_tie():
    """One arm under two names."""
    made = study()
    twins = [replace(run, arm="twin", run=run.run.replace("llp", "twin")) for run in made.finals["llp", "windows"]]
    made = replace(
        made,
        arms=[*made.arms, "twin"],
        finals={**made.finals, ("twin", "windows"): twins},
        trials={**made.trials, "twin": trials("twin")},
        primary=[*made.primary, Contrast("twin", "llp", "windows")],
    )
    text = compose(made).text
    found = "- **twin and llp are a tie** at equal windows: they differ by 0.0000 bits per byte, the noise floor is "
    (line,) = [line for line in text.splitlines() if line.startswith(found)]
    assert "(95 % interval " in line  # how far apart they may be all the same
    (row,) = [line for line in text.splitlines() if line.startswith("| twin - llp | equal windows | +0.0000 |")]
    assert row.endswith("| 1.000 | tie |")


def test_an_arm_made_worse_is_found_with_its_sign_and_size():
    """By 0.1 bits per byte on each document, in every seed; and better, seen from the other side."""
    made = study({"dense": 1.9, "llp": 1.9})
    worse = [
        replace(run, test={**run.test, "rows": text_rows([row["bits_per_byte"] + 0.1 for row in run.test["rows"][1:]])})
        for run in made.finals["dense", "windows"]
    ]
    worse = [replace(run, arm="llp", run=run.run.replace("dense", "llp")) for run in worse]
    made = replace(made, finals={**made.finals, ("llp", "windows"): worse})
    other_way_round = replace(made, primary=[Contrast("dense", "llp", "windows")])
    report = compose(made)
    text = report.text
    assert "- **llp is worse than dense** by 0.1000 bits per byte at equal windows" in text
    found = "- **dense is better than llp** by 0.1000 bits per byte at equal windows"
    assert found in compose(other_way_round).text
    (row,) = [row for row in report.summary.to_dict("records") if row["arm"] == "llp"]
    assert row["difference"] == pytest.approx(0.1)
    assert row["difference_low"] <= 0.1 + 1e-12
    assert row["difference_high"] >= 0.1 - 1e-12


def test_a_small_difference_is_undecided_above_the_floor_and_a_tie_below_it():
    made = study({"dense": 1.9, "llp": 1.9})
    made = replace(made, noise=[record("dense", seed, [1.9 + 1e-6 * seed] * 5) for seed in range(5)])
    assert "**llp against dense is undecided** at equal windows: " in compose(made).text
    noisy = replace(made, noise=[record("dense", seed, [1.9 + 0.1 * seed] * 5) for seed in range(5)])
    assert "**llp and dense are a tie** at equal windows: " in compose(noisy).text


def test_without_a_noise_floor_there_is_no_verdict():
    """Neither of a large difference nor of none; nor where the runs for it differ by more than their seed."""
    made = study()
    twins = [replace(run, arm="llp", run=run.run.replace("dense", "llp")) for run in made.finals["dense", "windows"]]
    same = replace(made, finals={**made.finals, ("llp", "windows"): twins})
    unsound = [made.noise[0], replace(made.noise[1], learning_rate=1e-3), made.noise[2]]
    for changed in (replace(made, noise=[]), replace(same, noise=made.noise[:1]), replace(made, noise=unsound)):
        text = compose(changed).text
        assert text.count("no verdict before the noise floor is known") == 2
        assert not any(
            f" {word}" in text[: text.index("Noise floor:")] for word in ("better", "worse", "tie", "undecided")
        )
        assert [one.verdict for one in judged(changed)[0]] == [None, None]


def test_what_may_not_be_compared_is_not():
    """The check says why, and neither a sentence nor a table has a difference; others are compared."""
    made = study()
    runs = list(made.finals["llp", "windows"])
    runs[0] = replace(runs[0], hashes={**runs[0].hashes, "training_windows": runs[1].hashes["training_windows"]})
    report = compose(replace(made, finals={**made.finals, ("llp", "windows"): runs}))
    text = report.text
    reason = "llp-lr0.003-steps100-s0: other training windows than other runs of seed 0"
    assert f"- **llp and dense can't be compared** at equal windows: {reason}" in text
    assert "- ✗ Runs of one seed and length took the same training windows, other seeds others\n  - " + reason in text
    assert "- ✓ All read the same text with the same tokenizer" in text
    assert "| llp - dense | equal windows | - | - | - | - | - | - | - | not comparable |" in text
    assert "- **window is worse than dense**" in text
    states = {row["arm"]: (row["state"], row["difference"] is not None) for row in report.summary.to_dict("records")}
    assert states == {
        "dense": ("reference", False),
        "window": ("comparable", True),
        "llp": ("not comparable", False),
    }


def test_a_diverged_run_is_not_compared():
    """Its loss is null in its record, or nan."""
    for nothing in (None, math.nan):
        made = study()
        runs = list(made.finals["llp", "windows"])
        lost = [{**row, "nats": nothing, "loss": nothing, "bits_per_byte": nothing} for row in runs[0].test["rows"]]
        curve = [{**entry, "loss": nothing} for entry in runs[0].curve]
        runs[0] = replace(runs[0], test={**runs[0].test, "rows": lost}, curve=curve)
        text = compose(replace(made, finals={**made.finals, ("llp", "windows"): runs})).text
        assert "**llp and dense can't be compared** at equal windows: llp-lr0.003-steps100-s0: it diverged" in text


def test_missing_runs_are_said():
    words = "llp fit: error: guard.max_skipped_steps = 0: the loss is nan. Windows:\n  sample 3\nLower learning_rate."
    failed = {
        "window-lr0.01-steps100-s100": Failure("Traceback\nout of memory", False),
        "llp-lr0.01-steps100-s0": Failure(words, True),
    }
    made = study(missing=["llp-lr0.003-steps100-s2"], failed=failed)
    made = replace(made, trials={**made.trials, "window": [*made.trials["window"][:2], Tried(RATES[2])]})
    partial = {
        ("dense", "windows"): made.finals["dense", "windows"],
        ("llp", "windows"): made.finals["llp", "windows"][:2],
    }
    text = compose(replace(made, finals=partial)).text
    assert (
        "1 missing, 2 failed. More will follow, once a learning rate is chosen for window. To continue: `llp compare"
        in text
    )
    assert "- `window-lr0.01-steps100-s100` failed: out of memory\n" in text
    diverged = "llp fit: error: guard.max_skipped_steps = 0: the loss is nan. Windows:"
    assert f"- `llp-lr0.01-steps100-s0` diverged: {diverged}\n" in text
    waits = (
        "No learning rate can be chosen for window before these have been tried again: `window-lr0.01-steps100-s100`."
    )
    assert waits in text
    assert "- `llp-lr0.003-steps100-s2`" in text
    assert (
        "**window against dense** at equal windows: not known yet; window has 0 and dense has 3 of 3 tested runs."
        in text
    )
    assert "2 of 3 seeds, 5 documents" in text
    assert "Not all runs are done of: window, llp." in text


def test_a_single_seed_has_no_interval():
    report = compose(study(seeds=[0]))
    assert "no interval from a single seed; 1 seed, 5 documents" in report.text
    assert "contrasts.png" in report.plots


def test_nothing_is_done_yet():
    made = study(finals={}, trials={arm: [Tried(rate) for rate in RATES] for arm in LEVELS}, noise=[])
    report = compose(replace(made, seconds_per_step={}))
    text = report.text
    assert "0 runs done, 9 missing, 0 failed." in text
    assert "More will follow, once a learning rate is chosen for dense, window, llp." in text
    assert "No run has been tested yet." in text
    assert "Nothing is known yet: no run has been tested." in text
    assert "- ? No test loss is infinite: nothing to check" in text
    assert "✓" not in text
    assert report.runs.empty
    assert {row["state"] for row in report.summary.to_dict("records")} == {"reference", "missing"}
    assert report.plots == {}


def judged(made):
    report = compose(made)
    return report.named, report.exploratory


def test_every_pair_is_judged_once():
    made = study(primary=[Contrast("dense", "llp", "windows"), Contrast("llp", "window", "windows")])
    named, others = judged(made)
    assert [one.contrast for one in named] == made.primary
    assert [one.contrast for one in others] == [Contrast("window", "dense", "windows")]
    assert [one.verdict for one in others] == [None]


def test_arms_that_vary_more_than_the_floor_are_named():
    made = study({"dense": 1.9, "window": 1.9, "llp": 1.9})
    steady = [record("dense", seed, [1.9 + 0.01 * seed] * 5) for seed in range(5)]  # standard deviation 0.0158
    spread = {"window": 0.031, "llp": 0.032}
    own = {
        (arm, "windows"): [record(arm, seed, [1.9 + step * seed] * 5) for seed in range(3)]
        for arm, step in spread.items()
    }
    text = compose(replace(made, noise=steady, finals={**made.finals, **own})).text
    assert (
        "vary more than twice as much over their own seeds, so chance alone makes larger differences than the floor: "
        "llp (0.0320)." in text
    )


def test_a_word_perplexity_converts_into_the_bits_per_byte_beside_it():
    made = study()
    (row,) = [row for row in compose(made).summary.to_dict("records") if row["arm"] == "llp"]
    whole = made.finals["llp", "windows"][0].test["rows"][0]
    nats_per_word = row["metric"] * math.log(2) * whole["bytes"] / whole["words"]
    assert row["word_perplexity"] == pytest.approx(math.exp(nats_per_word))
    assert row["perplexity"] == pytest.approx(math.exp(row["loss"]))


def test_the_sensitivity_is_over_the_rates_that_all_have_tried():
    """LLP has gone on to a rate that costs much; its sensitivity is that of the others all the same."""
    further = [*trials("llp"), *trials("llp", [6.0], [1.0])]
    made = study({"dense": 1.9, "llp": 2.0})
    text = compose(replace(made, trials={"dense": trials("dense"), "llp": further})).text
    rows = [line for line in text.splitlines() if "| **2.5000** |" in line]
    assert [line.split(" | ")[-2] for line in rows] == ["0.1667"] * 2  # (0.2 + 0 + 0.3) / 3


def test_a_pair_with_the_same_runs_under_two_budgets_is_judged_once():
    """LLP trains all positions: equal positions are equal windows. The window has longer runs; FLOPs has none yet."""
    made = study(primary=[], budgets=["windows", "positions", "flops"])
    longer = finals(Losses(LEVELS), "window", range(3), steps=200)
    own = {(arm, "positions"): made.finals[arm, "windows"] for arm in LEVELS} | {("window", "positions"): longer}
    _, others = judged(replace(made, finals={**made.finals, **own}))
    assert [one.contrast for one in others] == [
        Contrast("window", "dense", "windows"),
        Contrast("llp", "dense", "windows"),
        Contrast("window", "dense", "positions"),
        Contrast("window", "dense", "flops"),
        Contrast("llp", "dense", "flops"),
    ]


def test_holm_counts_contrasts_that_are_missing():
    """Three were named, one is done: its p value is three times the uncorrected one."""
    missing = [Contrast("llp", "dense", "flops"), Contrast("window", "dense", "flops")]
    made = study(primary=[Contrast("llp", "dense", "windows"), *missing], budgets=["windows", "flops"])
    named, _ = judged(made)
    assert named[0].p == pytest.approx(3 * named[0].outcome.interval.p)
    assert [(one.p, one.verdict) for one in named[1:]] == [(None, None)] * 2


def test_the_forest_shows_intervals_and_floors():
    made = study()
    named, others = judged(made)
    (axes,) = plots.forest(made.study(), named, others, "bits per byte").axes
    points = [line for line in axes.lines if len(line.get_xdata()) == 1]
    bars = [line for line in axes.lines[1:] if len(line.get_xdata()) == 2]
    assert [line.get_xdata()[0] for line in points] == [one.outcome.estimate for one in named]
    assert [list(line.get_xdata()) for line in bars] == [list(one.outcome.interval[:2]) for one in named]
    floors = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in axes.patches]
    assert floors == [pytest.approx((-one.floor, one.floor)) for one in named]
    assert [text.get_text() for text in axes.get_yticklabels()] == [
        "window - dense, equal windows",
        "llp - dense, equal windows",
    ]


def test_the_loss_is_drawn_over_what_it_cost():
    made = study(seconds_per_step={"dense": 0.1, "llp": 0.3})
    left, right = plots.loss_over_cost(made.study()).axes
    dense = left.lines[0]
    assert list(dense.get_xdata()) == pytest.approx([step * 8 * 6e8 for step in (20, 40, 60, 80, 100)])
    assert list(dense.get_ydata()) == pytest.approx([entry["loss"] for entry in record().curve])
    assert {line.get_label(): line.get_xdata()[-1] for line in right.lines} == pytest.approx({"dense": 10, "llp": 30})


def test_the_loss_by_position_is_less_that_of_the_reference():
    """And has lines at m = 64, 2 m and, within four layers, at 4 m."""
    made = study()
    (axes,) = plots.loss_by_position(made.study()).axes
    by_label = {line.get_label(): line for line in axes.lines}
    assert "dense" not in by_label
    assert list(by_label["llp"].get_xdata()) == [1.5 * 2**k - 0.5 for k in range(10)]
    difference = np.mean(
        [
            np.mean([row["bits_per_byte"] for row in a.test["rows"][1:]])
            - np.mean([row["bits_per_byte"] for row in b.test["rows"][1:]])
            for a, b in zip(made.finals["llp", "windows"], made.finals["dense", "windows"], strict=True)
        ]
    )
    assert list(by_label["llp"].get_ydata()) == pytest.approx([difference] * 10)
    marks = [line.get_xdata()[0] for line in axes.lines if line.get_linestyle() == "--"]
    assert marks == [64, 128, 256]


def test_of_rates_that_are_not_all_done_none_is_the_best():
    """The seeds of a trial that are done are listed, and decide nothing."""
    begun = [*trials("llp", (2.5, 2.7), RATES[:2]), Tried(RATES[2], [record("llp", 7, None, RATES[2])], n_missing=1)]
    made = study()
    report = compose(replace(made, trials={**made.trials, "llp": begun}))
    line = "| llp | 2.5000 | 2.7000 | - | - | `lr0.001-steps100-s100`; `lr0.003-steps100-s100`; `lr0.01-steps100-s7` |"
    assert line in report.text
    assert [row["use"] for row in report.runs.to_dict("records") if row["run"] == "llp-lr0.01-steps100-s7"] == ["rate"]
    assert "once a learning rate is chosen for llp." in report.text
    single = replace(made, trials={arm: trials(arm, (2.5,), RATES[1:2]) for arm in LEVELS})
    assert "| llp | **2.5000** | - | `lr0.003-steps100-s100` |" in compose(single).text


def test_slices_that_only_some_runs_have():
    """Runs without slices, and slices without tokens, are left out."""
    made, own = study(), slices(2.0)
    own["position"][3] = {**own["position"][3], "tokens": 0, "nats": 0.0}
    runs = [
        replace(run, slices=part) for run, part in zip(made.finals["llp", "windows"], (None, own, own), strict=True)
    ]
    some = replace(made, finals={**made.finals, ("llp", "windows"): runs})
    lines = {line.get_label(): line for line in plots.loss_by_position(some.study()).axes[0].lines}
    assert (len(lines["window"].get_xdata()), len(lines["llp"].get_xdata())) == (10, 9)
    none = {key: [replace(run, slices=None) for run in group] for key, group in made.finals.items()}
    assert plots.loss_by_position(replace(made, finals=none).study()) is None


def test_the_learning_rates():
    """A diverged run counts as ln V, and `edge` says that nothing beyond the best was tried."""
    lost = [*trials("window", (2.7, 2.5), RATES[:2]), Tried(RATES[2], is_diverged=True)]
    made = study()
    text = compose(replace(made, trials={**made.trials, "window": lost, "llp": trials("llp", (2.5, 2.7, 2.8))})).text
    assert "| dense | 2.7000 | **2.5000** | 2.8000 | 0.1667 |" in text
    assert f"| window | 2.7000 | **2.5000** | diverged | {(0.2 + math.log(1000) - 2.5) / 3:.4f} |" in text
    assert "| llp | **2.5000** edge | 2.7000 | 2.8000 | 0.1667 |" in text


def test_each_arm_has_a_style_of_its_own():
    """An architecture's own colour goes to the first arm of its kind."""
    look = plots.styles(study({"dense": 1.9, "llp": 1.9, **{f"arm{number}": 1.0 for number in range(9)}}).study())
    assert (look["dense"].color, look["llp"].color) == ("#5c636a", "#1c7ed6")
    assert len({style.color for style in look.values()}) == 11
