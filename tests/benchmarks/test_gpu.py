"""The GPU benchmark, in its small form on the CPU: it measures, survives what fails, and says so."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu  # noqa: E402
import gpu_attention  # noqa: E402
import gpu_record  # noqa: E402
import gpu_report  # noqa: E402
import gpu_units  # noqa: E402
from gpu_sizes import sizes_for  # noqa: E402


def test_its_small_form_measures_everything(tmp_path):
    command = [sys.executable, ROOT / "benchmarks/gpu.py", "--device", "cpu", "--minutes", "9", "--out", tmp_path]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    entries = gpu.entries(tmp_path / "rows.jsonl")
    rows = [entry for entry in entries if "event" not in entry]
    units = gpu_units.units(sizes_for(torch.device("cpu")), torch.device("cpu"), tmp_path)
    assert {(row["part"], row["unit"]) for row in rows if row["status"] == "ok"} == {unit[:2] for unit in units}
    # Nothing fails but what the CPU does not have.
    failed = [row for row in rows if row["status"] != "ok"]
    assert {row["name"] for row in failed} == {"two parts, flash", "two parts, cuDNN"}
    assert all("NotImplementedError" in row["why"] for row in failed)
    assert all(row["device"] and row["torch"] == torch.__version__ for row in rows)
    checked = [row["holds"] for row in rows if "holds" in row]
    assert checked
    assert all(checked)
    steps = {row["name"]: row for row in rows if row["part"] == "step" and row["unit"] == "no dropout"}
    assert set(steps) == {"LLP, cpu", "dense, cpu"}
    for row in steps.values():
        assert row["tokens_per_s"] == pytest.approx(64 / row["ms"] * 1e3)
        assert row["share_of_matrix_rate"] == pytest.approx(row["tflops"] / row["matrix_tflops"])
    assert all(len(row["losses"]) == 4 for row in rows if row["part"] == "curves")
    report = (tmp_path / "report.md").read_text()
    assert all(f"## {unit.part.capitalize()}" in report for unit in units)
    assert {path.name for path in tmp_path.glob("*.png")} == {"attention.png", "length.png", "curves.png"}


LABELS = {"part": "attention", "unit": "n 8", "device": "d", "torch": "t", "cuda": None, "cudnn": None}


def test_a_failure_is_a_row_and_the_others_go_on(tmp_path):
    record = gpu_record.Record(tmp_path / "rows.jsonl", LABELS, 1.0, {"known"})
    calls = []

    def fails():
        raise torch.OutOfMemoryError("out of memory.\nTried to allocate")

    def works():
        calls.append(None)

    times = gpu_record.in_turn(record, {"fails": fails, "known": works, "works": works}, rounds=3, at_least_s=0.0)
    assert set(times) == {"works"}
    assert len(times["works"]) == 3
    assert len(calls) >= 5
    rows = [entry for entry in gpu.entries(record.log) if "event" not in entry]
    assert rows == [LABELS | {"name": "fails", "status": "failed", "why": "OutOfMemoryError: out of memory."}]


def started(name, unit="n 8"):
    return {"event": "started", "time": time.time(), "expected_s": 5.0, **LABELS, "unit": unit, "name": name}


def test_who_a_process_died_of():
    row = LABELS | {"name": "one", "status": "ok"}
    finished = {"event": "finished", "part": "attention", "unit": "n 8"}
    whole, one, two = started(gpu.WHOLE), started("one"), started("two")
    assert gpu.unfinished([]) is None
    assert gpu.unfinished([whole]) is whole
    assert gpu.unfinished([whole, one]) is one
    assert gpu.unfinished([whole, one, two]) is two
    assert gpu.unfinished([whole, one, row]) is whole
    assert gpu.unfinished([whole, one, row, finished]) is None


def test_what_takes_too_long():
    now = time.time()
    at = started("one")
    assert gpu.too_long(at, now + 60) is None
    assert gpu.too_long(at, now - gpu.GRACE_S + 5) is None  # it began before the time was over, by little
    assert gpu.too_long({**at, "time": now - 60}, now - gpu.GRACE_S - 5) == "the time was over"
    assert "no result after" in gpu.too_long({**at, "time": now - gpu.HANGS_S - 6}, now + 60)


WORKER = """
import json, os, sys
log, name = sys.argv[sys.argv.index("--out") + 1] + "/rows.jsonl", {"part": "p", "unit": "u"}
found = [json.loads(line) for line in open(log)] if os.path.exists(log) else []
with open(log, "a") as stream:
    if any(entry.get("status") == "failed" for entry in found):
        stream.write(json.dumps({**name, "name": "two", "status": "ok"}) + "\\n")
        sys.exit(0)
    stream.write(json.dumps({"event": "started", "time": 0, "expected_s": 1e12, **name, "name": "one"}) + "\\n")
    stream.flush()
    os.abort()
"""


def test_another_process_goes_on_where_one_died(tmp_path, monkeypatch):
    worker = tmp_path / "worker.py"
    worker.write_text(WORKER)
    monkeypatch.setattr(gpu, "__file__", str(worker))
    monkeypatch.setattr(gpu_report, "write", lambda entries, folder: 0)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--out", str(tmp_path)])
    assert gpu.main() == 0
    rows = [entry for entry in gpu.entries(tmp_path / "rows.jsonl") if "event" not in entry]
    assert [(row["name"], row["status"]) for row in rows] == [("one", "failed"), ("two", "ok")]
    assert rows[0]["why"] == "its process ended with -6"


def test_what_has_no_time_left_is_skipped_and_measured_later(tmp_path):
    log = tmp_path / "rows.jsonl"
    options = gpu.argparse.Namespace(device="cpu", parts=["matrix rate"], deadline=time.time() - 1, out=tmp_path)
    gpu_units.measure(options, log)
    (row,) = gpu_report.latest(gpu.entries(log))
    assert (row["status"], row["name"]) == ("skipped", gpu.WHOLE)
    options.deadline += 100
    gpu_units.measure(options, log)
    measured = gpu_report.latest(gpu.entries(log))
    assert measured
    assert all(row["status"] == "ok" for row in measured)
    n_entries = len(gpu.entries(log))
    gpu_units.measure(options, log)  # nothing is measured twice
    assert len(gpu.entries(log)) == n_entries


def test_a_wrong_path_is_told(tmp_path):
    row = LABELS | {"part": "correctness", "name": "one | two", "status": "ok", "holds": False, "error_output": 0.5}
    assert gpu_report.write([row, row | {"name": "right", "holds": True}], tmp_path) == 1
    report = (tmp_path / "report.md").read_text()
    assert "**1 paths do not compute" in report
    assert "| n 8 | one \\| two | **NO** | 5.0e-01 |" in report


def test_errors_are_those_of_the_path():
    sizes, cpu = sizes_for(torch.device("cpu")), torch.device("cpu")

    def found(attend, sees):
        inputs = [gpu_attention.draw(sizes, cpu, torch.float32, (1, 2, 48, 8)) for _ in range(3)]
        return gpu_attention.errors(attend, sees, inputs, gpu_attention.nullcontext)["holds"]

    attend = gpu_attention.paths(cpu, 12)["copied pairs"][1]
    assert found(attend, lambda i, j: i // 12 - j // 12 <= 1)
    assert not found(attend, lambda i, j: i // 12 - j // 12 <= 2)


def test_the_blocks_of_flex_attention():
    flex = gpu_attention.Flex(1024, 256, torch.device("cpu"))
    expected = create_block_mask(flex.mask.mask_mod, None, None, 1024, 1024, device="cpu")
    assert torch.equal(flex.mask.to_dense(), expected.to_dense())
    assert torch.equal(flex.mask.full_kv_num_blocks, expected.full_kv_num_blocks)
    assert torch.equal(flex.mask.full_q_num_blocks, expected.full_q_num_blocks)
    with pytest.raises(ValueError, match="no whole blocks"):
        gpu_attention.Flex(1024, 200, torch.device("cpu"))


def test_entries_leave_out_a_line_that_was_cut_off(tmp_path):
    log = tmp_path / "rows.jsonl"
    log.write_text(json.dumps({"a": 1}) + '\n{"b": ')
    assert gpu.entries(log) == [{"a": 1}]
