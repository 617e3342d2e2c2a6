"""The report's own checks: each way in which arms can differ by mistake shows, and names who differs."""

import pytest

from helpers.comparison import FLOPS, LEVELS, Losses, changed, finals, records, study, text_rows
from llp.comparison.checks import check, reasons
from llp.comparison.records import Contrast

LLP, WINDOW = Contrast("llp", "dense", "windows"), Contrast("window", "dense", "windows")


def findings(study):
    return [finding for one in check(study) for finding in one.findings]


def assert_affects_llp_alone(records, words):
    """There are findings, all about LLP; they forbid its comparison and no other."""
    found, checks = findings(study(records)), check(study(records))
    assert {finding.arm for finding in found} == {"llp"}
    assert any(words in finding.text for finding in found), found
    assert reasons(checks, LLP)
    assert reasons(checks, WINDOW) == []


def with_test(records, arm, seed, **changes):
    test = records[f"{arm}-lr0.003-steps100-s{seed}"].test
    return changed(records, arm, [seed], test={"protocol": {**test["protocol"], **changes}})


def test_a_comparison_as_it_must_be_has_no_findings():
    assert findings(study(records())) == []
    assert [one.title for one in check(study(records())) if one.unchecked] == []


def test_before_anything_is_done_nothing_is_checked():
    assert {one.unchecked for one in check(study({}))} == {"nothing to check"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"window_len": 1536}, "window length 1536, others 512"),
        ({"tokenizer_fingerprint": "f" * 64}, "tokenizer ffffffff…, others tokenizer"),
        ({"complete": False}, "not all of the test was scored"),
        ({"certificate": {"causal": None}}, "was not probed"),
    ],
)
def test_unequal_scoring(changes, words):
    assert_affects_llp_alone(with_test(records(), "llp", 1, **changes), words)


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: text_rows([2.0] * 4, [9000, 4000, 6000, 2000]),
        lambda rows: [rows[0], {**rows[1], "bytes": 1}, *rows[2:]],
        lambda rows: [rows[0], *rows[2:], rows[1]],
    ],
)
def test_other_documents(change):
    rows = records()["llp-lr0.003-steps100-s0"].test["rows"]
    assert_affects_llp_alone(changed(records(), "llp", [0], test={"rows": change(rows)}), "documents ")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"hashes": {"data": "other"}}, "text other, others data"),
        ({"hashes": {"initial_weights": "x"}}, "initial weights x, others "),
        ({"hashes": {"training_windows": "x"}}, "training windows x"),
        ({"parameters": 261_000}, "parameters 261000, others 260000"),
    ],
)
def test_other_training(changes, words):
    assert_affects_llp_alone(changed(records(), "llp", [1], **changes), words)


def test_seeds_that_took_the_same_windows():
    """All arms agree, and two seeds are one."""
    made = records()
    for arm in LEVELS:
        made = changed(made, arm, [0], hashes={"training_windows": "800 windows of seed 2"})
    assert any("s2: its training windows are those of seed 0 too" in finding.text for finding in findings(study(made)))


def longer(made, **hashes):
    """The study with LLP's runs at half the FLOPs per window, and so of twice the length."""
    runs = finals(Losses(LEVELS), "llp", range(3), steps=200, flops_per_window=FLOPS // 2)
    made = {**made, **{run.run: run for run in runs}}
    runs[0].hashes.update(hashes)
    return study(made, flops={"llp": FLOPS // 2}, budgets=["windows", "flops"])


def test_longer_runs_begin_with_the_windows_of_shorter_ones():
    """As far as both went: 64 of 100 and 200 batches."""
    assert findings(longer(records())) == []
    found = findings(longer(records(), first_64_batches="x", first_128_batches="beyond, which no other run has"))
    assert [finding.text for finding in found] == ["llp-lr0.003-steps200-s0: first 64 batches x, others 64 batch…"]


def test_first_windows_that_older_records_lack_are_not_checked():
    made = records()
    for one in [one for one in made.values() if one.arm == "dense"]:
        for name in [name for name in one.hashes if name.startswith("first")]:
            del one.hashes[name]
    (unchecked,) = {one.unchecked for one in check(study(made))} - {None}
    assert unchecked == "8 of 20 runs have no digest of their first windows in their records"


@pytest.mark.parametrize(
    ("share", "words"), [(1.009, []), (1.011, ["llp-lr0.003-steps100-s2: 101.1% of the flops of dense"])]
)
def test_a_budget_that_was_not_kept(share, words):
    """It forbids the comparison under this budget alone."""
    made = changed(records(), "llp", [2], flops_per_window=share * FLOPS)
    checks = check(study(made, budgets=["windows", "flops"]))
    assert reasons(checks, LLP._replace(budget="flops")) == words
    assert reasons(checks, WINDOW._replace(budget="flops")) == reasons(checks, LLP) == []
