"""Two processes never train in one folder, and a lock never outlives its process."""

import errno
import fcntl
import signal
import subprocess
import sys

import pytest

from helpers.refusals import assert_one_message
from llp.errors import SettingError
from llp.training.run_lock import locked

HOLD = """
import sys, time
from pathlib import Path
from llp.training.run_lock import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder():
    """Starts a process that holds the lock of a folder."""
    processes = []

    def hold(folder):
        process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout.readline() == "locked\n"
        return process

    yield hold
    for process in processes:
        process.kill()
        process.communicate()


def test_a_second_process_is_refused_and_a_killed_one_holds_nothing(run, trained, holder):
    unfinished = trained / "checkpoints/.last.ckpt.unfinished"  # what the other process is writing
    unfinished.write_bytes(b"half")
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    process = holder(trained)
    more = ("--trainer.max_steps", 8)
    message = "name = run: another process is training in"
    for arguments in (("--config", "tiny.yaml"), ("--ckpt_path", "last", *more), ("--ckpt_path", "auto", *more)):
        assert_one_message(run("fit", "--name", "run", *arguments), message)
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before
    assert run("test", "--ckpt_path", trained)[0] == 0  # it reads what is whole

    process.send_signal(signal.SIGKILL)
    process.wait()
    status, _, err = run("fit", "--name", "run", "--ckpt_path", "auto", *more)
    assert status == 0, err
    assert not unfinished.exists()


def test_the_lock_is_free_after_the_block_and_leaves_no_file(tmp_path):
    folder = tmp_path / "lightning_logs/run"
    for _ in range(2):
        with locked(folder), pytest.raises(SettingError, match="name = run: another"), locked(folder):
            pass
    assert list(folder.iterdir()) == []


def test_a_file_system_without_locks_stops_no_run(tmp_path, monkeypatch):
    def unsupported(descriptor, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with locked(tmp_path / "run"), locked(tmp_path / "run"):
        pass
