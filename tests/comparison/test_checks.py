"""The report's own checks: each way in which arms can differ by mistake shows, and names who differs."""

import math
from dataclasses import replace

import pytest

from helpers.comparison import LEVELS, RATES, Losses, Tried, finals, study, text_rows, trials
from llp.comparison import checks
from llp.comparison.checks import reasons
from llp.comparison.study import Contrast

LLP, WINDOW = Contrast("llp", "dense", "windows"), Contrast("window", "dense", "windows")


def check(made):
    return checks.check(made.study())


def findings(changed):
    return [finding for one in check(changed) for finding in one.findings]


def with_final(made, arm, number, budget="windows", **changes):
    """The study with one tested run changed."""
    records = list(made.finals[arm, budget])
    records[number] = replace(records[number], **changes)
    return replace(made, finals={**made.finals, (arm, budget): records})


def with_protocol(made, arm, **changes):
    records = [
        replace(run, test={**run.test, "protocol": {**run.test["protocol"], **changes}})
        for run in made.finals[arm, "windows"]
    ]
    return replace(made, finals={**made.finals, (arm, "windows"): records})


def with_hash(made, arm, number, **changes):
    return with_final(made, arm, number, hashes={**made.finals[arm, "windows"][number].hashes, **changes})


def assert_affects_llp_alone(changed, *words):
    """There are findings, all about LLP; they forbid its comparison and no other."""
    found = findings(changed)
    assert found
    assert {arm for finding in found for arm in finding.arms} == {"llp"}
    for word in words:
        assert any(word in finding.text for finding in found), found
    assert reasons(check(changed), LLP)
    assert reasons(check(changed), WINDOW) == []


def test_a_comparison_as_it_must_be_has_no_findings():
    assert findings(study()) == []
    assert reasons(check(study()), LLP) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"window_len": 1536}, ["window_len is 1536, that of others 512"]),
        ({"stride": 64}, ["stride is 64"]),
        ({"data_fingerprint": "other"}, ["data_fingerprint is other"]),
        ({"tokenizer_fingerprint": "f" * 64}, ["tokenizer_fingerprint is ffffffff…, that of others tokenizer"]),
        ({"complete": False}, ["not all of the test was scored"]),
        ({"certificate": {"causal": None}}, ["was not probed"]),
        ({"certificate": None}, ["was not probed"]),
    ],
)
def test_unequal_scoring(changes, words):
    assert_affects_llp_alone(with_protocol(study(), "llp", **changes), *words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda rows: text_rows([2.0] * 4, [9000, 4000, 6000, 2000]),
            ["other documents than the others' 5 (1 missing)"],
        ),
        (lambda rows: rows[:-1], ["1 missing", "don't add up to the tokens"]),  # and the whole still counts it
        (lambda rows: [rows[0], {**rows[1], "bytes": 1}, *rows[2:]], ["(1 missing, 1 unknown)"]),
        (lambda rows: [rows[0], *rows[2:], rows[1]], ["(in another order)"]),
    ],
)
def test_other_documents(change, words):
    made = study()
    test = made.finals["llp", "windows"][0].test
    changed = with_final(made, "llp", 0, test={**test, "rows": change(test["rows"])})
    assert_affects_llp_alone(changed, *words)


def test_documents_that_all_dropped():
    """Where nothing differs, the whole still tells."""
    made = study()
    for arm, number in [(arm, number) for arm in LEVELS for number in range(3)]:
        test = made.finals[arm, "windows"][number].test
        made = with_final(made, arm, number, test={**test, "rows": test["rows"][:-1]})
    made = replace(made, noise=[])
    assert len([f for f in findings(made) if "don't add up" in f.text]) == 9
    lessened = [{**row, "nats": row["nats"] / 2} if row["document"] == "book 3" else row for row in test["rows"]]
    assert_affects_llp_alone(with_final(study(), "llp", 0, test={**test, "rows": lessened}), "don't add up to the loss")


def test_swapped_windows():
    """Two arms' runs took each other's windows: of other seeds, or one arm of two lengths."""
    made = study()
    changed = with_hash(made, "llp", 0, training_windows=made.finals["window", "windows"][1].hashes["training_windows"])
    changed = with_hash(
        changed, "window", 1, training_windows=made.finals["llp", "windows"][0].hashes["training_windows"]
    )
    found = findings(changed)
    assert {arm for finding in found for arm in finding.arms} >= {"llp", "window"}
    assert any("llp-lr0.003-steps100-s0: other training windows than other runs of seed 0" in f.text for f in found)
    assert any("window-lr0.003-steps100-s1: other training windows than other runs of seed 1" in f.text for f in found)
    assert reasons(check(changed), LLP)
    assert reasons(check(changed), WINDOW)


def test_all_arms_with_another_seed_s_data():
    """All agree, and two seeds are one."""
    made = study(noise=[])
    for arm in LEVELS:
        made = with_hash(made, arm, 0, training_windows=made.finals[arm, "windows"][2].hashes["training_windows"])
    assert any("s2: its training windows are those of seed 0 too" in finding.text for finding in findings(made))


def longer(made, **changes):
    """The study with LLP's runs under a second budget, of twice the length."""
    runs = finals(Losses(LEVELS), "llp", range(3), steps=200)
    runs[0] = replace(runs[0], hashes={**runs[0].hashes, **changes})
    return replace(made, finals={**made.finals, ("llp", "flops"): runs})


def one(changed, words):
    (found,) = [one for one in check(changed) if words in one.title]
    return found


def test_longer_runs_begin_with_the_windows_of_shorter_ones():
    """As far as both went: 64 of 100 and 200 batches."""
    title = "unequal length"
    assert findings(longer(study())) == []
    assert one(longer(study()), title).unchecked is None
    changed = longer(study(), first_64_batches="others", first_128_batches="others")
    (finding,) = one(changed, title).findings
    words = "within its first 64 batches other training windows than other runs of seed 0"
    assert finding.text == f"llp-lr0.003-steps200-s0: {words}"
    assert finding.arms == {"llp"}
    assert one(longer(study(), first_128_batches="beyond"), title).findings == []  # which no other run has


def test_first_windows_that_older_records_lack_are_not_checked():
    """The records say so; what there is is checked all the same."""
    title, made = "unequal length", longer(study(noise=[]))
    assert one(study(), title).unchecked == "nothing to check"
    for number, run in enumerate(made.finals["dense", "windows"]):
        hashes = {name: digest for name, digest in run.hashes.items() if not name.startswith("first")}
        made = with_final(made, "dense", number, hashes=hashes)
    lacking = "3 of 12 runs have no digest of their first windows in their records"
    assert one(made, title)[1:] == ([], lacking)
    changed = with_hash(made, "window", 0, first_1_batches="others")
    assert len(one(changed, title).findings) == 1


def test_other_data_and_weights():
    assert_affects_llp_alone(with_hash(study(), "llp", 1, data="other"), "data is other")
    assert_affects_llp_alone(with_hash(study(), "llp", 1, tokenizer="other"), "tokenizer is other")
    assert_affects_llp_alone(with_hash(study(), "llp", 1, initial_weights="x"), "other initial weights")


def test_parameters():
    """V3's map is its own; nobody else has more."""
    assert_affects_llp_alone(with_final(study(), "llp", 1, parameters=261_000), "261,000 parameters, others 260,000")
    v3, history = "llp.CompressedAttention", {"model": {"init_args": {"history_len": 100, "compressed_len": 10}}}
    made = study(primary=[])
    for number, run in enumerate(made.finals["llp", "windows"]):
        init_args = {**run.settings["model"]["init_args"], **history["model"]["init_args"]}
        settings = {**run.settings, "model": {"class_path": v3, "init_args": init_args}}
        made = with_final(made, "llp", number, class_path=v3, parameters=261_000, settings=settings)
    assert findings(made) == []
    changed = with_hash(made, "llp", 1, initial_weights="x")
    assert_affects_llp_alone(changed, "other initial weights")


def with_trials(arm, tried):
    made = study()
    return replace(made, trials={**made.trials, arm: tried})


def test_a_doubled_grid():
    rates = sorted([*RATES, *(2 * rate for rate in RATES)])
    changed = with_trials("llp", trials("llp", (2.7, 2.7, 2.5, 2.6, 2.8, 2.9), rates))
    assert_affects_llp_alone(changed, "llp: 0.002, 0.006, 0.02 was tried beside the common 0.001, 0.003, 0.01")
    denser = with_trials("llp", trials("llp", (2.9, 2.8, 2.7, 2.5, 2.6, 2.9), [3e-4, 6e-4, *RATES, 3e-2]))
    assert_affects_llp_alone(denser, "without need")


def test_an_extension_at_the_edge():
    """0.03 follows from the best at 0.01, 0.1 from the best at 0.03; not if the best lies elsewhere."""
    grid = [*RATES, 3e-2, 1e-1]
    chosen = [replace(run, learning_rate=3e-2) for run in study().finals["llp", "windows"]]

    def extended(*losses):
        made = with_trials("llp", trials("llp", losses, grid))
        return replace(made, finals={**made.finals, ("llp", "windows"): chosen})

    assert findings(extended(2.9, 2.8, 2.7, 2.6, 2.8)) == []
    assert_affects_llp_alone(extended(2.9, 2.6, 2.7, 2.5, 2.8), "llp: 0.03 was tried")
    downwards = with_trials("llp", trials("llp", (2.8, 2.9, 2.5, 2.6), [3e-4, *RATES]))
    assert any("0.0003 was tried" in finding.text for finding in findings(downwards))


def test_rates_that_nobody_else_tried():
    changed = with_trials("llp", trials("llp", rates=[2e-3, 6e-3, 2e-2]))
    assert any("no learning rate was tried for all" in finding.text for finding in findings(changed))
    assert reasons(check(changed), WINDOW)


def test_trials_that_are_not_done_explain_nothing_and_accuse_nobody():
    tried = [Tried(rate) for rate in [*RATES, 3e-2]]
    assert findings(with_trials("llp", tried)) == []
    assert findings(replace(study(), trials={})) == []


def test_a_learning_rate_that_was_not_the_best():
    diverged = with_trials("llp", trials("llp", (2.7, math.nan, 2.8)))
    assert_affects_llp_alone(diverged, "learning rate 0.003, the best one tried is 0.001")


def test_a_best_rate_at_the_edge_is_said_and_forbids_nothing():
    title = "at the edge of those tried"
    assert one(study(), title)[1:] == ([], None)
    for losses, words in (((2.5, 2.7, 2.8), "0.001 is the lowest"), ((2.8, 2.7, 2.5), "0.01 is the highest")):
        changed = with_trials("llp", trials("llp", losses))
        (finding,) = one(changed, title).findings
        assert finding.text == f"llp: {words} rate that was tried; one beyond it may be better"
        assert finding.text not in reasons(check(changed), LLP)


def test_a_rate_beyond_which_training_diverged_is_not_at_the_edge():
    title = "at the edge of those tried"
    tried = trials("llp", (2.8, 2.7), RATES[:2])
    assert len(one(with_trials("llp", tried), title).findings) == 1
    assert one(with_trials("llp", [*tried, Tried(RATES[2], is_diverged=True)]), title).findings == []
    # One that is still to be tried decides.
    begun = [*trials("llp", (2.7, 2.8), RATES[:2]), Tried(RATES[2])]
    assert one(with_trials("llp", begun), title).findings == []


def test_conditions_without_anything_to_check():
    """Before anything is done none of them holds; with a single rate there is no choice, and no edge."""
    nothing = study(finals={}, trials={}, noise=[])
    assert {one.unchecked for one in check(nothing)} == {"nothing to check"}
    single = study(trials={arm: trials(arm, (2.5,), RATES[1:2]) for arm in LEVELS})
    unchecked = [one.title for one in check(single) if one.unchecked]
    assert [title.split(",")[0] for title in unchecked] == [
        "Runs of one seed and unequal length took the same first training windows",
        "No chosen learning rate lies at the edge of those tried",
        "The learning rate of each is the best one of those tried",
    ]


def test_schedules():
    made = study()
    settings = made.finals["llp", "windows"][0].settings
    model = {**settings["model"], "init_args": {**settings["model"]["init_args"], "warmup_steps": 50}}
    assert_affects_llp_alone(
        with_final(made, "llp", 0, settings={**settings, "model": model}), "warm-up: 50, others 10"
    )
    # as many windows in half as many steps
    assert_affects_llp_alone(with_final(made, "llp", 0, steps=50), "steps: 50, others 100")


@pytest.mark.parametrize("budget", ["positions", "flops", "seconds"])
def test_a_budget_that_was_not_kept(budget):
    """0.9 % more is allowed, 1.1 % is not, and forbids the comparison under this budget alone."""
    losses = Losses(LEVELS)

    def spending(steps):
        made = study(noise=[], primary=[], budgets=["windows", budget])
        own = {(arm, budget): finals(losses, arm, range(3), steps=1000) for arm in ("dense", "window")}
        own["llp", budget] = finals(losses, "llp", range(3), steps=steps)
        return replace(made, finals={**made.finals, **own})

    assert findings(spending(1009)) == []
    assert any(f"101.1% of the {budget} of dense" in finding.text for finding in findings(spending(1011)))
    assert reasons(check(spending(1011)), LLP._replace(budget=budget))
    assert reasons(check(spending(1011)), WINDOW._replace(budget=budget)) == []
    assert reasons(check(spending(1011)), LLP) == []


def test_without_a_timing_pass_seconds_are_not_judged():
    losses, made = Losses(LEVELS), study(noise=[], seconds_per_step={})
    own = {("dense", "seconds"): finals(losses, "dense", range(3)), ("llp", "seconds"): finals(losses, "llp", range(3))}
    assert findings(replace(made, finals={**made.finals, **own})) == []


def test_runs_for_the_noise_floor():
    """They forbid nothing: without them there is no noise floor."""
    made = study()
    other = replace(made, noise=[*made.noise[:4], replace(made.noise[4], learning_rate=1e-3)])
    assert any("it differs by more than its seed" in finding.text for finding in findings(other))
    twice = replace(made, noise=[*made.noise[:4], replace(made.noise[4], seed=3)])
    assert any("another run has seed 3 too" in finding.text for finding in findings(twice))
    assert reasons(check(other), LLP) == []


def test_of_two_arms_that_differ_the_reference_is_right():
    made = study({"llp": 2.0, "dense": 1.9}, noise=[], trials={}, reference="dense")
    changed = with_protocol(made, "llp", stride=64)
    assert {arm for finding in findings(changed) for arm in finding.arms} == {"llp"}
