"""Bad input: one clear message that names the setting, the value and the remedy, and nothing on disk lost."""

import json
import warnings

import pytest
import torch

from datamodules import WikiText103
from helpers.prepared import files
from helpers.refusals import assert_one_message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--model.init_args.segment_len", "64"),
            "segment_len = 64: window_len = 32 is shorter; set segment_len to 32 or less, or data.init_args.window_len",
        ),
        (("--model.init_args.segment_length", "8"), "'segment_length' is not accepted\nDid you mean segment_len?"),
        ((), "arguments are required: fit.data, fit.model\nName files that hold them: --config"),
        (("--trainer.max_step", "8"), "unrecognized arguments: --trainer.max_step 8\nDid you mean max_steps?"),
        (
            ("--model", "own_models.Mine"),
            "No module named 'own_models'\nIf the module is your own, add its folder to P",
        ),
        (("--data.init_args.path", "nowhere"), "data.init_args.path = nowhere: wiki.train.tokens is missing"),
        (("--data.init_args.path", "caf\udce9"), r"argument = caf\xe9: it is not UTF-8; rename the file or folder"),
        (("--data.init_args.scoring_stride", "12"), "scoring_stride = 12: set it to a multiple of 8"),
        (
            ("--data.init_args.tokenizer", "datamodules.SentencePiece"),
            "data.init_args.tokenizer.init_args.vocab_size = 32000: the training text has pieces for",
        ),
        (("--ckpt_path", "missing.ckpt"), "ckpt_path = missing.ckpt: there is no such file"),
        (("--config", "{trainer: {max_stepz: 3}}"), "'trainer.max_stepz'\nDid you mean max_steps?"),
        (("--seed_everything", "-1"), "seed_everything = -1"),
        (("--name", "a/b"), "name = 'a/b': it is the name of a folder in lightning_logs"),
        (("--trainer.enable_checkpointing", "false"), "enable_checkpointing"),
        (("--trainer.default_root_dir", "tiny.yaml"), "tiny.yaml/lightning_logs/run: Not a directory; a file is where"),
        (("--trainer.max_steps", "0"), "trainer.max_steps = 0: nothing would be trained; leave it out"),
        (("--model.init_args.schedule", "cosine", "--trainer.max_steps", "-1"), "trainer.max_steps = -1: the cosine"),
        # Lightning's own words
        (("--trainer.strategy", "deepspeed"), "you must have DeepSpeed installed"),
        (("--trainer.callbacks", "llp.checkpoints.callback.RunCheckpoint"), "trainer: Found more than one stateful"),
        (
            (
                "--trainer.callbacks=lightning.pytorch.callbacks.EarlyStopping",
                "--trainer.callbacks.init_args.monitor=x",
            ),
            "trainer.callbacks: Early stopping conditioned on metric `x` which is not available",
        ),
    ],
    ids=str,
)
def test_bad_settings_are_one_message(run, work, arguments, message):
    status, _, err = run("fit", *("--config", "tiny.yaml", "--name", "run") * bool(arguments), *arguments)
    assert status not in (0, None)
    assert message in err
    assert "Traceback" not in err
    assert len([line for line in err.splitlines() if "error: " in line]) == 1
    assert not list(work.glob("lightning_logs/*/checkpoints/*"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_file_to_take_is_named(run, work):
    outcome = run("fit", "--config", "tiny.yaml", "--config", "configs/trainer/gpu.yaml")
    message = "trainer.accelerator = gpu: torch finds no GPU on this machine; take configs/trainer/cpu"
    assert_one_message(outcome, message)
    assert warnings.formatwarning(UserWarning("one\n  two"), UserWarning, "a.py", 3) == "llp: warning: one two\n"


def test_a_model_that_leaks_is_not_reported(run, trained, monkeypatch):
    def leaking(query, key, value, segment_len, look_back, dropout_p=0.0):
        return torch.nn.functional.scaled_dot_product_attention(query, key, value)

    monkeypatch.setattr("llp.decoder.patterns.segment_pair_attention", leaking)
    outcome = run("test", "--ckpt_path", trained)
    assert_one_message(outcome, "it depends on a later position: it reads what it predicts")
    assert "perplexity" not in outcome[1]
    assert not (trained / "test.json").exists()
    status, out, err = run("test", "--ckpt_path", trained, "--certificate.enabled", "false")
    assert status == 0, err
    assert "NOT probed for causality" in out
    assert json.loads((trained / "test.json").read_text())["protocol"]["certificate"] == {"causal": None}


def test_a_run_is_never_overwritten(run, trained):
    assert run("fit", "--config", "tiny.yaml", "--name", "failed", "--data.init_args.window_len", 100_000)[0] == 1
    assert run("fit", "--config", "tiny.yaml", "--name", "failed")[0] == 0  # it never started: its name is free
    before = (trained / "checkpoints/last.ckpt").read_bytes()
    outcome = run("fit", "--config", "tiny.yaml", "--name", "run")
    assert_one_message(outcome, "name = run: lightning_logs/run holds a run already")
    assert (trained / "checkpoints/last.ckpt").read_bytes() == before


def test_checkpoints_that_do_not_fit(run, trained, work):
    good = trained / "checkpoints/best.ckpt"
    cut = trained / "checkpoints/cut.ckpt"
    cut.write_bytes(good.read_bytes()[:-500])
    own = torch.load(good, weights_only=True) | {"architecture": "own_models.Mine"}
    torch.save(own, work / "own.ckpt")
    cases = [
        ((), "ckpt_path = None: `llp test` needs a trained model"),
        (("--ckpt_path", "last"), "ckpt_path = last: give the run's --name, too"),
        (("--ckpt_path", "auto", "--name", "x"), "ckpt_path = auto: there is no intact checkpoint in lightning_logs/x"),
        (("--ckpt_path", good, "--model.init_args.dim", "32"), "dim = 32: the checkpoint has 16, so its weights"),
        (("--ckpt_path", work), f"ckpt_path = {work}: there is no checkpoint in this folder"),
        (("--ckpt_path", cut), f"the newest whole one beside it is {trained / 'checkpoints/last.ckpt'}"),
        (("--ckpt_path", work / "own.ckpt"), "class_path = own_models.Mine: it can't be imported"),
    ]
    for arguments, message in cases:
        assert_one_message(run("test", *arguments), message)
    assert not (trained / "test.json").exists()


def test_a_resumed_run_that_is_complete_has_nothing_left_to_do(run, trained, caplog):
    last, before = ("fit", "--name", "run", "--ckpt_path", "last"), files(trained)
    status, _, err = run(*last)
    assert status == 0, err
    assert "Nothing is left to do: all 6 steps of trainer.max_steps are trained" in caplog.messages
    message = (
        "trainer.max_steps = 5: the checkpoint has trained for 6 steps, and this counts those of the whole run; set"
    )
    assert_one_message(run(*last, "--trainer.max_steps", 5), message)
    assert files(trained) == before


def test_a_run_that_is_resumed_under_another_name_says_so(run, trained, caplog):
    before = files(trained)
    status, _, err = run("fit", "--name", "other", "--ckpt_path", trained, "--trainer.max_steps", 8)
    assert status == 0, err
    message = "lightning_logs/run is resumed at step 6 as a new run, lightning_logs/other; it stays as it is"
    assert message in caplog.messages
    assert files(trained) == before


def test_a_warm_up_that_takes_the_whole_run_is_said(run, work):
    flags = ("--model.init_args.warmup_steps", 3, "--trainer.max_steps", 3)
    with pytest.warns(UserWarning, match="warmup_steps = 3: the warm-up takes all of the run's 3 steps"):
        assert run("fit", "--config", "tiny.yaml", *flags)[0] == 0


@pytest.mark.parametrize("error", [ZeroDivisionError("a bug"), ModuleNotFoundError("No module", name="no_such")])
def test_a_bug_keeps_its_traceback(run, work, monkeypatch, error):
    def fail(self, stage):
        raise error

    monkeypatch.setattr(WikiText103, "setup", fail)
    with pytest.raises(type(error)):
        run("fit", "--config", "tiny.yaml")
