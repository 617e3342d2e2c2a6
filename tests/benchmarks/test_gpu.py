"""The GPU benchmark with tiny sizes on the CPU: it measures, survives what fails, and says so."""

import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import gpu
import peers
import tables

CPU = torch.device("cpu")


def test_it_measures_every_part_once(tmp_path):
    assert gpu.main(["--device", "cpu", "--out", str(tmp_path)]) == 0
    rows = tables.read(tmp_path)
    assert {row["part"] for row in rows} == {"correctness", "attention", "step", "length", "generation"}
    assert not [row for row in rows if "error" in row]
    assert all(row["holds"] for row in rows if row["part"] == "correctness")
    for row in (row for row in rows if row["part"] == "step"):
        assert row["tokens_per_s"] == pytest.approx(64 / row["seconds"])
    report = (tmp_path / "report.txt").read_text()
    assert all(f"\n{part}\n" in report for part in ("attention", "generation"))
    before = (tmp_path / "rows.jsonl").read_text()
    gpu.main(["--device", "cpu", "--out", str(tmp_path)])
    assert (tmp_path / "rows.jsonl").read_text() == before


def test_an_error_is_a_row_and_the_others_are_measured(tmp_path):
    outcomes = [torch.OutOfMemoryError("out of memory.\nTried to"), KeyboardInterrupt()]

    def fail():
        raise outcomes.pop(0)

    planned = [gpu.Measurement({"arm": "fails"}, fail), gpu.Measurement({"arm": "works"}, dict)]
    gpu.measure_missing(planned, tmp_path, deadline=0)  # no time
    assert tables.read(tmp_path) == []
    gpu.measure_missing(planned, tmp_path, time.time() + 60)
    assert [row.get("error") for row in tables.read(tmp_path)] == ["OutOfMemoryError: out of memory.", None]
    gpu.measure_missing(planned, tmp_path, time.time() + 60)  # nothing is missing
    with pytest.raises(KeyboardInterrupt):  # the process ends in the middle of a measurement
        gpu.measure_missing(planned, tmp_path, time.time() + 60, retry=True)
    assert tables.read(tmp_path)[0]["error"] == "the process ended"


def test_a_wrong_attention_does_not_hold():
    right, wrong = peers.attentions(12)["LLP"], peers.attentions(4)["LLP"]

    def holds(attend):
        return gpu.correctness(gpu.Variant(right, attend), (1, 2, 48, 8), 48, CPU, torch.float32)["holds"]

    assert holds(right.attend)
    assert not holds(wrong.attend)
