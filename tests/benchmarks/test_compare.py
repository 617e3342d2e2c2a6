"""The CPU benchmark: its peers compute what we compute, and it writes what it measures."""

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


@pytest.mark.parametrize("name", ["published LLP", "local-attention"])
def test_peers_attend_as_llp(name):
    attentions = peers.attentions(segment_len=4)
    query, key, value = (torch.randn(2, 3, 16, 8, dtype=torch.float64) for _ in range(3))
    expected = attentions["LLP"].attend(query, key, value)
    torch.testing.assert_close(attentions[name].attend(query, key, value), expected, rtol=1e-12, atol=1e-12)


def test_growth_is_the_exponent():
    n = pd.Series([1024, 2048, 4096, 8192])
    seconds = 3e-4 * n**1.5
    seconds[0] = 1.0  # shorter than what is fitted
    assert tables.power_law(n, seconds) == pytest.approx((1.5, 3e-4))
    assert tables.power_law(n[:2], seconds[:2]) is None


def test_rounds_time_every_arm():
    ticks = iter(range(100))
    order = []
    runs = {name: lambda name=name: order.append(name) for name in "ab"}
    times = measuring.in_turn(runs, rounds=3, clock=lambda: next(ticks))
    assert times == {"a": [1, 1, 1], "b": [1, 1, 1]}
    assert [set(order[first : first + 2]) for first in (4, 6, 8)] == [{"a", "b"}] * 3  # four runs come before


def test_a_process_of_its_own():
    assert measuring.in_own_process(os.getpid) != os.getpid()


def test_it_writes_tables_and_plots(tmp_path, monkeypatch):
    monkeypatch.setattr(compare, "in_own_process", lambda function, *args: function(*args))

    def run(*arguments):
        sizes = ["--dim", "64", "--n_heads", "2", "--segment_len", "8", "--layers", "2", "--rounds", "2"]
        compare.main([*arguments, *sizes, "--out", str(tmp_path)])

    run("--groups", "attention", "stack", "perceiver", "--lengths", "32")
    run("--groups", "step", "memory", "--lengths", "32", "--names", "LLP", "--add")
    rows = pd.read_csv(tmp_path / "results.csv")
    found = set(zip(rows["group"], rows["name"], strict=True))
    assert {("stack", name) for name in ("LLP", "Transformer", "local-attention", "published LLP")} <= found
    assert {("perceiver", "perceiver-ar-pytorch"), ("step", "LLP"), ("memory", "LLP"), ("memory", "head")} <= found
    assert (rows["seconds"][rows["group"] != "memory"] > 0).all()
    assert {path.stem for path in tmp_path.glob("*.png")} == set(tables.GROUPS)
    assert "local-attention" in (tmp_path / "results.txt").read_text()
