"""The CPU benchmark: its peers compute what we compute, and it writes what it measures."""

import math
import os
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import compare
import measuring
import peers
import tables

RESULTS = Path(__file__).parents[2] / "benchmarks/results"


@pytest.mark.parametrize("name", ["published LLP", "local-attention"])
def test_peers_attend_as_llp(name):
    attentions = peers.attentions(segment_len=4)
    query, key, value = (torch.randn(2, 3, 16, 8, dtype=torch.float64) for _ in range(3))
    expected = attentions["LLP"].attend(query, key, value)
    torch.testing.assert_close(attentions[name].attend(query, key, value), expected, rtol=1e-12, atol=1e-12)


def test_growth_is_the_exponent():
    seconds = pd.Series({n: 3e-4 * n**1.5 for n in (1024, 2048, 4096, 8192)})
    seconds[1024] = 1.0  # shorter than what is fitted
    assert tables.power_law(seconds) == pytest.approx(1.5)
    assert math.isnan(tables.power_law(seconds[:2]))


def test_times_relative_to_llp():
    times = {"other": {2048: 3.0, 4096: 12.0}, "LLP": {2048: 2.0, 4096: 4.0}, "short": {2048: 1.0}}
    rows = [{"arm": arm, "n": n, "seconds": seconds} for arm in times for n, seconds in times[arm].items()]
    table = tables.relative(pd.DataFrame(rows)).set_index("time / LLP")
    assert table.loc["other"].tolist() == pytest.approx([1.5, 3.0, 2.0])
    assert table.loc["short"].tolist() == pytest.approx([0.5, math.nan, math.nan], nan_ok=True)


def test_a_row_replaces_the_one_of_the_same_label(tmp_path):
    first, other = {"arm": "a", "n": 8, "seconds": 1.0}, {"arm": "b", "n": 8, "seconds": 2.0}
    tables.add(tmp_path, [first, other])
    again = first | {"seconds": 3.0}
    assert tables.add(tmp_path, [again]) == tables.read(tmp_path) == [again, other]


@pytest.mark.parametrize("folder", ["cpu", "cpu_one_thread", "long_text", "pretrained"])
def test_committed_tables_come_out_of_the_rows(folder):
    assert tables.report(tables.read(RESULTS / folder)) == (RESULTS / folder / "results.txt").read_text()


def test_shares_of_the_matrix_rate():
    case = measuring.Case(lambda: torch.zeros(1000), flops=5e6, trained_tokens=10)
    row = measuring.rates({"a": case}, matrix_size=8, rounds=3)["a"]
    assert row["share_of_matrix_rate"] * row["matrix_gflops"] * 1e9 * row["seconds"] == pytest.approx(5e6)
    assert row["us_per_trained_token"] == pytest.approx(1e5 * row["seconds"])
    assert row["least"] <= row["seconds"] <= row["most"]


def test_rounds_time_every_arm():
    ticks = iter(range(100))
    order = []
    runs = {name: lambda name=name: order.append(name) for name in "ab"}
    times = measuring.in_turn(runs, rounds=3, clock=lambda: next(ticks))
    assert times == {name: {"seconds": 1, "least": 1, "most": 1, "rounds": 3} for name in runs}
    assert [set(order[first : first + 2]) for first in (4, 6, 8)] == [{"a", "b"}] * 3  # four runs come before


def test_a_process_of_its_own():
    assert measuring.in_own_process(os.getpid) != os.getpid()


def test_it_writes_tables_and_plots(tmp_path, monkeypatch):
    monkeypatch.setattr(measuring, "in_own_process", lambda function, *args: function(*args))

    def run(*arguments):
        sizes = ["--dim", "64", "--n_heads", "2", "--segment_len", "8", "--layers", "2", "--rounds", "2"]
        compare.main([*arguments, *sizes, "--out", str(tmp_path)])

    run("--groups", "attention", "stack", "perceiver", "--lengths", "32")
    run("--groups", "step", "memory", "--lengths", "32", "--names", "LLP")
    rows = pd.DataFrame(tables.read(tmp_path))
    found = set(zip(rows["part"], rows["arm"], strict=True))
    assert {("stack", name) for name in ("LLP", "Transformer", "local-attention", "published LLP")} <= found
    assert {("perceiver", "perceiver-ar-pytorch"), ("step", "LLP"), ("memory", "LLP"), ("memory", "head")} <= found
    assert (rows["seconds"][rows["part"] != "memory"] > 0).all()
    assert {path.name for path in tmp_path.glob("*.png")} == set(compare.PLOTS)
    assert "local-attention" in (tmp_path / "results.txt").read_text()
