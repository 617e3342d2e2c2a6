"""What a run records in `run.json`: while it trains, when it ends, and over a resume."""

import json
import signal

import pytest
import torch

import llp
from helpers.runs import curves
from llp.training.run_record import git_commit


def record(folder):
    return json.loads((folder / "run.json").read_text())


def test_a_finished_run(trained):
    """Six optimizer steps of four windows of 32; validated after the fourth and the sixth."""
    content, logged = record(trained), curves(trained)
    assert content["state"] == "finished"
    assert (content["step"], content["total_steps"], content["trained_tokens"]) == (6, 6, 6 * 4 * 32)
    assert (content["windows_per_step"], content["training_window_len"]) == (4, 32)
    assert content["architecture"] == "llp.LLP"
    assert content["parameters"] == sum(parameter.numel() for parameter in llp.load(trained).module.parameters())
    assert 0 < content["training_seconds"] < 60
    latest, best = content["validations"][-1], content["best_validation"]
    for name in ("loss", "perplexity", "word_perplexity", "bits_per_byte"):
        assert latest[name] == pytest.approx(logged[f"val/{name}"][-1][1], rel=1e-6)
    assert latest["complete"] is True
    assert best["loss"] == pytest.approx(min(value for _, value in logged["val/loss"]), rel=1e-6)
    assert [latest["step"], best["step"]] == [6, 6]
    assert content["commit"] == git_commit()
    assert (content["versions"]["torch"], content["versions"]["llp"]) == (torch.__version__, llp.__version__)


def test_the_state_of_a_run_that_is_stopped_fails_and_ends(run, work, monkeypatch):
    """Stopped in the fifth step, which is finished; then an error in the sixth; then the end."""
    seen, folder = [], work / "lightning_logs/run"
    step = llp.LLP.training_step

    def act(self, batch, batch_idx):
        seen.append((self.trainer.global_step, record(folder)["state"]))
        if actions.get(self.trainer.global_step):
            actions.pop(self.trainer.global_step)()
        return step(self, batch, batch_idx)

    monkeypatch.setattr(llp.LLP, "training_step", act)
    actions = {4: lambda: signal.raise_signal(signal.SIGTERM), 5: lambda: 1 / 0}
    assert run("fit", "--config", "tiny.yaml", "--name", "run")[0] == 143
    stopped = record(folder)
    assert (stopped["state"], stopped["step"], stopped["trained_tokens"]) == ("stopped", 5, 5 * 4 * 32)
    assert stopped["validations"][-1]["step"] == stopped["best_validation"]["step"] == 4
    with pytest.raises(ZeroDivisionError):
        run("fit", "--name", "run", "--ckpt_path", "last")
    failed = record(folder)
    assert (failed["state"], failed["step"]) == ("failed", 5)
    assert failed["best_validation"] == stopped["best_validation"]  # from before the resume
    assert run("fit", "--name", "run", "--ckpt_path", "last")[0] == 0
    finished = record(folder)
    assert (finished["state"], finished["step"], finished["trained_tokens"]) == ("finished", 6, 6 * 4 * 32)
    assert finished["training_seconds"] > stopped["training_seconds"]  # they add up over a resume
    assert seen == [(number, "running") for number in (0, 1, 2, 3, 4, 5, 5)]
    assert [path.name for path in folder.glob("*run*")] == ["run.json"]
