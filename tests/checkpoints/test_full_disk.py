"""A disk that is full: what failed, where, and how to go on; nothing whole is lost. For real: `campaigns/faults.py`."""

import errno

import torch

from helpers.refusals import assert_one_message
from llp.checkpoints import callback

FIT = ("fit", "--config", "tiny.yaml", "--name", "run")


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
