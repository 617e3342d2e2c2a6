"""Does the instrument measure? Whole comparisons whose result is known beforehand, and one that is killed."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.comparison import write_specification

pytestmark = pytest.mark.slow

EXTRA_NATS = 0.25

ARMS = f'''
"""Arms whose difference is known. Their scores are not those of their logits, so the check of scores is left out."""

from llp import LLP
from llp.evaluation import probes

probes.check_scoring = lambda *arguments: None


class Worse(LLP):
    """An LLP that is scored as if it gave each token a probability that is less by a known factor."""

    def score_nats(self, batch):
        return super().score_nats(batch) + {EXTRA_NATS}
'''


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Records and report of a comparison of an LLP with itself and with one that is worse by a known amount."""
    folder = tmp_path_factory.mktemp("instrument")
    (folder / "known_arms.py").write_text(ARMS)
    (folder / "texts").mkdir()
    for number in range(200):  # documents
        text = "".join(f"line {n} of text {number} has {n * n} and {n % (number + 2)}\n" for n in range(20))
        (folder / f"texts/{number}.txt").write_text(text)
    llp = {"class_path": "llp.LLP", "init_args": {"segment_len": 16}}
    write_specification(
        folder,
        "texts",
        64,
        arms={"llp": llp, "meta_copy": llp, "worse": {**llp, "class_path": "known_arms.Worse"}},
        reference="llp",
        steps=40,
        learning_rates=[3e-3],
        seeds=[0, 1, 2],
        slices=False,
        primary=[["meta_copy", "llp", "windows"], ["worse", "llp", "windows"]],
    )
    command = [sys.executable, "-m", "llp", "compare", "spec.yaml", "--workers", "2"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr
    place = folder / "lightning_logs/comparisons/tiny"
    records = [json.loads(path.read_text()) for path in sorted(place.glob("records/*.json"))]
    return records, (place / "report.md").read_text()


def test_identical_arms_are_equal_to_the_last_digit_and_a_tie(report):
    records, text = report
    losses = {
        arm: {one["seed"]: one["test"]["rows"][0]["nats"] for one in records if one["arm"] == arm}
        for arm in ("llp", "meta_copy")
    }
    assert losses["llp"] == losses["meta_copy"]
    assert len(losses["llp"]) == 3
    assert "**meta_copy and llp are a tie**" in text


def test_an_arm_that_is_worse_is_found_with_the_sign_and_the_size_that_it_has(report):
    records, text = report
    whole = records[0]["test"]["rows"][0]
    expected = EXTRA_NATS * whole["tokens"] / whole["bytes"] / math.log(2)
    assert f"**worse is worse than llp** by {expected:.4f} bits per byte" in text


def test_a_comparison_that_is_killed_has_the_records_of_one_that_was_not():
    script = Path(__file__).parents[1] / "campaigns/kill_comparison.py"
    done = subprocess.run([sys.executable, str(script), "--kills", "3"], capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stderr
    assert "to the byte" in done.stdout
