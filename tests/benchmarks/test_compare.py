"""The benchmark: its peers compute what we compute, and it writes what it says."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import peers  # noqa: E402
import tables  # noqa: E402


@pytest.mark.parametrize("name", ["published LLP", "local-attention"])
def test_peers_attend_as_llp(name):
    patterns = peers.attention_patterns(segment_len=4)
    query, key, value = (torch.randn(2, 3, 16, 8, dtype=torch.float64) for _ in range(3))
    expected = patterns["LLP"](query, key, value)
    torch.testing.assert_close(patterns[name](query, key, value), expected, rtol=1e-12, atol=1e-12)


def test_growth_is_the_exponent():
    exponent, factor = tables.growth({n: 3e-4 * n**1.5 for n in (10, 100, 1000)})
    assert exponent == pytest.approx(1.5)
    assert factor == pytest.approx(3e-4)


def test_it_writes_a_table_and_plots(tmp_path):
    sizes = ["--dim", "64", "--n_heads", "2", "--segment_len", "8", "--layers", "2", "--rounds", "2"]

    def run(*arguments):
        command = [sys.executable, ROOT / "benchmarks/compare.py", *arguments, *sizes, "--out", tmp_path]
        done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    run("--groups", "attention", "stack", "perceiver", "--lengths", "32", "64")
    run("--groups", "step", "memory", "--lengths", "32", "--names", "LLP", "--add")
    with (tmp_path / "results.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    found = {(row["group"], row["name"]) for row in rows}
    assert {("stack", name) for name in ("LLP", "Transformer", "local-attention", "published LLP")} <= found
    assert {("perceiver", "perceiver-ar-pytorch"), ("step", "LLP"), ("memory", "LLP"), ("memory", "head")} <= found
    assert all(float(row["seconds"]) > 0 for row in rows if row["group"] != "memory")
    assert {path.name for path in tmp_path.glob("*.png")} == {f"{group}.png" for group in tables.GROUPS}
    assert "local-attention / LLP" in (tmp_path / "results.txt").read_text()
