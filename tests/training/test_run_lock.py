"""Two processes never train in one folder."""

import errno
import fcntl

import pytest

from helpers.refusals import assert_one_message
from llp.errors import SettingError
from llp.training.run_lock import locked


def test_a_second_process_is_refused(run, trained):
    """The kernel's lock belongs to an open folder, so that it makes no difference that this is the same process."""
    unfinished = trained / "checkpoints/.last.ckpt.unfinished"  # what the other process is writing
    unfinished.write_bytes(b"half")
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    more = ("--trainer.max_steps", 8)
    with locked(trained):
        for arguments in (("--config", "tiny.yaml"), ("--ckpt_path", "last", *more), ("--ckpt_path", "auto", *more)):
            assert_one_message(run("fit", "--name", "run", *arguments), "name = run: another process is training in")
        assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before
        assert run("test", "--ckpt_path", trained)[0] == 0  # it reads what is whole
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
