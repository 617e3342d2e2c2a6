"""What is shown while runs are under way: kept up to date in a terminal, a line now and then in a log."""

import json
import sys
from types import SimpleNamespace

import pytest

from llp.comparison import progress
from llp.comparison.progress import Progress, training_left


@pytest.fixture
def clock(monkeypatch):
    clock = SimpleNamespace(now=0.0, monotonic=lambda: clock.now)
    monkeypatch.setattr(progress, "time", clock)
    return clock


def test_a_log_gets_lines_when_something_changes_and_each_minute(clock, capsys):
    shown = Progress()
    for clock.now, event in ((0, "a"), (1, "a"), (2, "b"), (61, "b"), (62, "b"), (63, "b")):
        shown.show([f"{event} at {clock.now}", "  a run"], event)
    lines = capsys.readouterr().err.splitlines()
    assert lines[::2] == ["a at 0", "b at 2", "b at 62"]
    assert lines[1::2] == ["  a run"] * 3


def test_a_terminal_shows_the_last_state_alone(clock, capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    shown = Progress()
    shown.show(["one", "  a run"], 1)
    shown.show(["two"], 1)
    shown.say("failed")
    assert capsys.readouterr().err == "one\n  a run\n\033[2F\033[Jtwo\n\033[1F\033[Jfailed\n"


def test_what_is_left_of_a_training(tmp_path):
    assert training_left(tmp_path) == ""
    record = {"state": "running", "step": 200, "total_steps": 1000, "training_seconds": 30}
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert training_left(tmp_path) == ", step 200 of 1,000, about 02:00 left"
    (tmp_path / "run.json").write_text(json.dumps({**record, "step": 0}))
    assert training_left(tmp_path) == ""
