"""A small campaign of faults (docs/faults.md), and that a campaign can fail."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import faults
from helpers.faults import Injection, OutcomeError, Scene
from helpers.forked import Outcome

CAMPAIGN = Path(__file__).parent.parent / "faults.py"


@pytest.mark.slow
def test_no_fault_has_a_consequence_that_it_may_not_have():
    """Some of each kind that needs only one process; all of them, and many more: `python tests/faults.py`."""
    command = [sys.executable, str(CAMPAIGN), "--quick", "--seed", "1", "--injections", "30"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    assert " failures" in done.stdout


@pytest.fixture
def scene(tmp_path):
    return Scene(tmp_path, random.Random(0), undisturbed=None)


MESSAGE = "llp fit: error: ckpt_path = last.ckpt: it is damaged"


@pytest.mark.parametrize(
    ("outcome", "kind"),
    [
        (Outcome(None, "", ""), faults.HANG),
        (Outcome(1, "", f"{MESSAGE}\nTraceback (most recent call last):"), faults.TRACEBACK),
        (Outcome(1, "", "llp fit: error: something is wrong"), faults.UNCLEAR),
        (Outcome(1, "", f"{MESSAGE}\n{MESSAGE}"), faults.UNCLEAR),
        (Outcome(0, "", MESSAGE), faults.UNCLEAR),
        (Outcome(1, "", MESSAGE), None),
    ],
)
def test_what_counts_as_one_message(scene, outcome, kind):
    if kind is None:
        scene.refused(outcome, "last.ckpt")
        return
    with pytest.raises(OutcomeError) as caught:
        scene.refused(outcome, "last.ckpt")
    assert caught.value.kind == kind


def test_another_figure_and_a_lost_checkpoint_are_failures(scene):
    scene.same("test", [1.0], [1.0])
    with pytest.raises(OutcomeError) as caught:
        scene.same("test", [1.0], [1.5])
    assert caught.value.kind == faults.WRONG
    assert scene.kept(0) == 0
    with pytest.raises(OutcomeError) as caught:
        scene.kept(4)  # there is none
    assert caught.value.kind == faults.LOST


def test_half_a_checkpoint_in_the_place_of_a_whole_one_is_a_lost_one(scene):
    (scene.folder / "lightning_logs/run/checkpoints").mkdir(parents=True)
    (scene.folder / "lightning_logs/run/checkpoints/last.ckpt").write_bytes(b"half")
    with pytest.raises(OutcomeError) as caught:
        faults._after_disk(scene, faults.WRITTEN["checkpoint last"])
    assert caught.value.kind == faults.LOST


def test_the_table_counts_all():
    made = [("kill", faults.EQUAL), ("kill", faults.LOST), ("clock", faults.SAME)]
    injections = [Injection(0, number, kind, "", outcome) for number, (kind, outcome) in enumerate(made)]
    lines = faults.table(injections).splitlines()
    head, first, last = ([cell.strip() for cell in lines[number].split("|")][1:-1] for number in (0, 2, -1))
    assert dict(zip(head, first, strict=True)) == {
        "kind": "kill -9 of a run", "injections": "2", faults.EQUAL: "1", faults.SAME: "", faults.LOST: "1",
        faults.WRONG: "", faults.TRACEBACK: "",
    }  # fmt: skip
    assert dict(zip(head, last, strict=True))["injections"] == "3"
