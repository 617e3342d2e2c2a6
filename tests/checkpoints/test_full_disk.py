"""A disk that is full, or may not be written: what failed, where, and how to go on; nothing whole is lost."""

import errno
import subprocess
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from helpers.refusals import assert_one_message
from llp.checkpoints import callback

FIT = ("fit", "--config", "tiny.yaml", "--name", "run")


@contextmanager
def small_disk(folder: Path, size: str, *options: str):
    """A file system of its own in the folder; the test is skipped where none may be mounted."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}", *options]), "tmpfs", str(folder)]
    try:
        if subprocess.run(command, capture_output=True, check=False).returncode:
            pytest.skip("no file system may be mounted here")
    except FileNotFoundError:
        pytest.skip("there is no mount here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.parametrize(
    ("size", "file"),
    [("4k", "config.yaml"), ("24k", "checkpoints/best.ckpt"), ("300k", "checkpoints/last.ckpt")],
)  # fmt: skip
def test_a_full_disk_for_real(run, work, size, file):
    with small_disk(work / "disk", size) as disk:
        outcome = run(*FIT, "--trainer.default_root_dir", disk)
        run_folder = disk / "lightning_logs/run"
        assert_one_message(
            outcome, f"{run_folder / file}: No space left on device; make room there, or write elsewhere"
        )
        assert {path.name for path in (run_folder / "checkpoints").glob("*")} <= {"best.ckpt"}  # whole ones alone
        if file == "checkpoints/last.ckpt":
            goes_on = "Resume from step 4 with: llp fit --ckpt_path disk/lightning_logs/run/checkpoints/best.ckpt"
            assert goes_on in outcome[2]
            assert torch.load(run_folder / "checkpoints/best.ckpt", weights_only=True)["global_step"] == 4
        elif file == "checkpoints/best.ckpt":
            assert "No checkpoint has been saved yet." in outcome[2]


def test_a_later_checkpoint_that_fails_leaves_the_one_before(run, work, monkeypatch):
    save, calls = torch.save, []

    def failing(checkpoint, stream):
        calls.append(checkpoint["global_step"])
        if calls[-1] > 4:
            stream.write(b"half")
            raise OSError(errno.ENOSPC, "in torch's words")
        save(checkpoint, stream)

    monkeypatch.setattr(callback.torch, "save", failing)
    outcome = run(*FIT)
    folder = work / "lightning_logs/run/checkpoints"
    assert_one_message(outcome, "lightning_logs/run/checkpoints/best.ckpt: ")
    last = "lightning_logs/run/checkpoints/last.ckpt"
    assert f"Resume from step 4 with: llp fit --ckpt_path {last}" in outcome[2]
    assert {path.name for path in folder.iterdir()} == {"best.ckpt", "last.ckpt"}
    monkeypatch.setattr(callback.torch, "save", save)
    status, _, err = run("fit", "--ckpt_path", last)
    assert status == 0, err
