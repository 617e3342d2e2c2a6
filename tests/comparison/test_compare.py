"""`llp compare` as a user calls it, with real files."""

import fcntl
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import threading
from contextlib import redirect_stderr
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers.comparison import write_specification
from helpers.in_process import call, in_this_process
from helpers.small_llama import NINE_HEADS, save_llama
from llp.atomic_files import checked_json, json_with_digest
from llp.comparison.folder import ComparisonFolder
from llp.comparison.workers import Workers, training_left

COMPARISONS = Path(__file__).parent.parent.parent / "configs/compare"


def specification(path, **changes):
    """Two arms that can be trained, and one for which no machine has the memory."""
    settings = {
        "arms": {
            "dense": {"class_path": "llp.Transformer"},
            "huge": {"class_path": "llp.Transformer", "init_args": {"dim": 2**28, "n_heads": 2**24}},
        },
        "reference": "dense",
        "steps": 6,
        "validations": 2,
        "learning_rates": [0.01],
        "seeds": [3],
        "primary": [["huge", "dense", "windows"]],
    }
    write_specification(path, "text.txt", 32, **(settings | changes))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder in which a comparison has been executed, and what that printed."""
    folder, err = tmp_path_factory.mktemp("compare"), io.StringIO()
    (folder / "text.txt").write_text("".join(f"line {n} has {n * n} and {n % 7}\n" for n in range(500)))
    specification(folder)
    with pytest.MonkeyPatch.context() as patch, redirect_stderr(err):
        patch.chdir(folder)
        patch.setattr(Workers, "_start", in_this_process)
        assert call("compare", "spec.yaml", "--workers", "2") == 1
    return folder, err.getvalue()


def files(folder):
    """All files of the comparison by their content, but for logs."""
    top = folder / "lightning_logs/comparisons/tiny"
    return {path: path.read_bytes() for path in top.rglob("*") if path.is_file() and path.parent.name != "logs"}


def records(folder):
    paths = sorted(folder.glob("lightning_logs/comparisons/tiny/records/*.json"))
    return {path.stem: json.loads(path.read_text()) for path in paths}


def test_a_run_leaves_a_record_and_a_failed_one_stops_no_other(finished):
    folder, printed = finished
    ((name, record),) = records(folder).items()
    assert name == "dense-lr0.01-steps6-s3"
    assert "failed; see lightning_logs/comparisons/tiny/logs, and try again with --retry" in printed
    assert f"0 of 2 runs done, 0 failed, 2 left, 2 of them under way here\n  {name}: training for 00:" in printed
    assert (record["run"], record["arm"], record["seed"], record["steps"]) == (name, "dense", 3, 6)
    assert [entry["step"] for entry in record["curve"]] == [3, 6]
    assert (record["windows"], record["positions_per_window"], record["pairs_per_window"]) == (24, 32, 2 * 32 * 33 // 2)
    place = folder / f"lightning_logs/comparisons/tiny/lightning_logs/{name}"
    report = json.loads((place / "test.json").read_text())
    assert record["test"]["rows"][0] == report["rows"][0]
    assert record["test"]["protocol"]["window_len"] == 32
    assert record["hashes"]["data"] == report["protocol"]["data_fingerprint"]
    assert sum(entry["tokens"] for entry in record["slices"]["position"]) == report["rows"][0]["tokens"]
    assert not (place / "token_losses.parquet").exists()
    failed = json.loads(
        next(folder.glob("lightning_logs/comparisons/tiny/lightning_logs/huge-*/failed.json")).read_text()
    )
    assert failed["exit_status"] == 1
    assert "it is not enough" in failed["last_words"]


@pytest.fixture
def compare_here(finished, run, monkeypatch):
    """Calls `llp compare` in this process, in the folder of the finished comparison."""
    monkeypatch.chdir(finished[0])

    def compare_here(*options):
        status, out, err = run("compare", "spec.yaml", *options)
        assert (status, "Traceback" in err) == (1, False), err  # a run of it fails
        return out

    return compare_here


def test_a_records_own_commands_give_its_figures(finished, run, monkeypatch):
    folder, _ = finished
    ((name, record),) = records(folder).items()
    monkeypatch.chdir(folder)
    for command in record["commands"][:2]:
        threads, program, *words = shlex.split(command)
        assert (threads, program) == ("OMP_NUM_THREADS=1", "llp")  # as many as this process has
        words = ["again" if word == name else word.replace(f"logs/{name}/", "logs/again/") for word in words]
        status, _, err = run(*words)
        assert status == 0, err
    repeated = folder / "lightning_logs/comparisons/tiny/lightning_logs/again/test.json"
    assert json.loads(repeated.read_text())["rows"][0]["loss"] == record["test"]["rows"][0]["loss"]
    shutil.rmtree(repeated.parent)


def test_a_record_that_is_lost_is_made_again_without_training(finished, compare_here):
    """Its commit is that of the training, not that of the process that records the run."""
    folder, _ = finished
    before = files(folder)
    (path,) = folder.glob("lightning_logs/comparisons/tiny/records/*.json")
    trained = folder / f"lightning_logs/comparisons/tiny/lightning_logs/{path.stem}/run.json"
    said = trained.read_text()
    assert json.loads(path.read_text())["commit"] == json.loads(said)["commit"]
    trained.write_text(json_with_digest({**checked_json(said), "commit": "another", "versions": {"torch": "1.0"}}))
    path.unlink()
    compare_here()
    record = json.loads(path.read_text())
    assert (record["commit"], record["versions"]) == ("another", {"torch": "1.0"})
    trained.write_text(said)
    path.unlink()
    compare_here()
    assert files(folder) == before


def test_another_text_under_the_same_path_does_not_count_as_done(finished, run, work):
    shutil.copytree(finished[0] / "lightning_logs", work / "lightning_logs")
    specification(work)
    (work / "text.txt").write_text("".join(f"another line {n} has {n * n}\n" for n in range(500)))
    status, _, err = run("compare", "spec.yaml")
    assert status == 1
    assert "fingerprint of the data = " in err
    assert "1 of 1 records are of another one" in err


def test_a_damaged_file_fails_its_run_and_stops_no_other(finished, compare_here):
    folder, _ = finished
    (path,) = folder.glob("lightning_logs/comparisons/tiny/records/*.json")
    (test,) = folder.glob("lightning_logs/comparisons/tiny/lightning_logs/dense-*/test.json")
    content, record = test.read_text(), path.read_text()
    path.unlink()
    changed = re.sub(r'"loss": [\d.]+', '"loss": 1.0', content, count=1)  # valid, and far better than it was
    assert changed != content
    test.write_text(changed)
    compare_here()
    failed = json.loads((test.parent / "failed.json").read_text())
    assert "test.json: it is missing or damaged" in failed["last_words"]
    test.write_text(content)
    (test.parent / "failed.json").unlink()
    compare_here()
    assert path.read_text() == record


def test_a_stage_is_a_process_that_writes_to_the_log_of_its_run(tmp_path):
    folder = ComparisonFolder(tmp_path, "x")
    workers = Workers(lambda: SimpleNamespace(folder=folder, names=[]), 1)
    with folder.locked_log("a") as log:
        process = workers._start(["--version"], log)
    with folder.locked_log("a") as log:
        assert log is None  # it holds the lock
    assert process.wait() == 0
    assert folder.log("a").read_text().startswith("$ llp --version\nllp ")


def test_a_run_that_another_process_works_on_is_left_to_it(finished, compare_here):
    folder, _ = finished
    (path,) = folder.glob("lightning_logs/comparisons/tiny/records/*.json")
    content = path.read_text()
    path.unlink()
    with (folder / f"lightning_logs/comparisons/tiny/logs/{path.stem}.log").open("ab") as log:
        fcntl.flock(log, fcntl.LOCK_EX)
        # The other one is done after a while, and lets go.
        timer = threading.Timer(2.0, lambda: (path.write_text(content), fcntl.flock(log, fcntl.LOCK_UN)))
        timer.start()
        compare_here()
        assert not timer.is_alive()
    assert path.read_text() == content


def test_a_plan_lists_all_runs_and_starts_none(finished, run, work):
    shutil.copy(finished[0] / "text.txt", work)
    specification(work, seeds=[3, 4], budgets=["windows", "flops"])
    status, out, _ = run("compare", "spec.yaml", "--plan")
    assert status == 0
    # Two seeds each; `huge` gets fewer steps for as many FLOPs, which are other runs.
    assert [
        line.split("-")[0].strip()
        for line in out.splitlines()
        if " to do " in line and "%" not in line and "-lr" in line
    ] == 2 * ["dense"] + 4 * ["huge"]
    assert "6 of 6 runs to do" in out
    assert not (work / "lightning_logs").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scoring_stride": 64}, "scoring_stride = 64"),
        ({"arms": {"dense": {"class_path": "llp.Transformer", "init_args": {"dims": 4}}}, "primary": []}, "dims"),
        ({"steeps": 3}, "steeps"),
    ],
)
def test_what_is_refused_before_anything_starts(finished, run, work, changes, message):
    shutil.copy(finished[0] / "text.txt", work)
    specification(work, **changes)
    status, _, err = run("compare", "spec.yaml")
    assert status in (1, 2)
    assert message in err
    assert not (work / "lightning_logs").exists()


def test_what_is_left_of_a_training(tmp_path):
    assert training_left(tmp_path) == ""
    record = {"state": "running", "step": 200, "total_steps": 1000, "training_seconds": 30}
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert training_left(tmp_path) == ", step 200 of 1,000, about 02:00 left"


@pytest.mark.parametrize("path", sorted(COMPARISONS.glob("*.yaml")), ids=lambda path: path.stem)
def test_comparisons_of_the_repository_can_be_planned(run, work, path):
    if path.stem == "lora":
        save_llama("smollm2", **NINE_HEADS)
    status, out, err = run("compare", str(path), "--plan")
    assert status == 0, err
    assert "runs to do" in out
    assert ("dollars" in out) is (path.stem == "gpu" or "ladder" in path.stem)


def test_an_array_job_has_a_task_for_each_run_that_can_start(finished, run, work, cluster):
    shutil.copy(finished[0] / "text.txt", work)
    (work / "configs").symlink_to(COMPARISONS.parent)
    specification(work)
    status, out, _ = run("compare", "spec.yaml", "--slurm", "4")
    assert (status, out) == (0, "Submitted batch job 7\n")
    lines = work / "lightning_logs/comparisons/tiny/runs-1.txt"
    assert [line.split("-")[0] for line in lines.read_text().splitlines()] == ["dense", "huge"]
    script = "configs/slurm/compare.sbatch"
    log = "--output=lightning_logs/comparisons/tiny/logs/slurm-%A_%a.log"
    assert cluster.read_text() == f"sbatch --array=1-2%4 {log} {script} spec.yaml {lines.relative_to(work)} compare\n"


@pytest.mark.parametrize(
    ("ends", "preempted_at", "then"),
    [
        ("exit 0", "None", []),
        ("exit 1", "None", []),
        ("kill -USR1 $$", "None", ["requeue"]),
        ("kill -TERM $$", "None", ["show job"]),  # by scancel, say
        ("kill -TERM $$", "2026-11-25T12:00:00", ["show job", "requeue"]),
    ],
)
def test_a_task_of_the_array_carries_out_its_run_and_returns_to_the_queue(tmp_path, cluster, ends, preempted_at, then):
    """As SLURM would call it: the run is that of the task's line, and only this task is requeued."""
    with (tmp_path / "bin/scontrol").open("a") as scontrol:
        scontrol.write(f"echo '   PreemptEligibleTime=2026-11-25T11:00:00 PreemptTime={preempted_at}'\n")
    (tmp_path / "bin/llp").write_text(f'#!/usr/bin/env bash\necho llp "$@" >> "{cluster}"\n{ends}\n')
    (tmp_path / "bin/llp").chmod(0o755)
    (tmp_path / "runs.txt").write_text("dense-1-s0\nllp-2-s0\n")
    environment = {**os.environ, "SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_JOB_ID": "7", "SLURM_JOB_ID": "9"}
    script = COMPARISONS.parent / "slurm/compare.sbatch"
    subprocess.run(
        ["bash", script, "spec.yaml", tmp_path / "runs.txt", "compare"], env=environment, cwd=tmp_path, check=False
    )
    command = "llp compare spec.yaml --run llp-2-s0"
    calls = [f"srun --kill-on-bad-exit=1 {command}", command, *(f"scontrol {word} 7_2" for word in then)]
    assert cluster.read_text().splitlines() == calls
