"""Bad input: one clear message that names the setting, the value and the remedy, and nothing on disk lost."""

import json

import pytest
import torch

from datamodules import WikiText103


def test_a_model_that_leaks_is_not_reported(run, trained, monkeypatch):
    def leaking(query, key, value, segment_len, look_back, dropout_p=0.0):
        return torch.nn.functional.scaled_dot_product_attention(query, key, value)

    monkeypatch.setattr("llp.architectures.long_lora_perceiver.segment_pair_attention", leaking)
    checkpoint = trained / "checkpoints/best.ckpt"
    status, out, err = run("test", "--ckpt_path", checkpoint)
    assert status == 1
    assert "its logits change with the tokens after position 0: it reads what it predicts" in err
    assert "perplexity" not in out
    assert not (trained / "test.json").exists()
    status, out, err = run("test", "--ckpt_path", checkpoint, "--certificate.enabled", "false")
    assert status == 0, err
    assert "NOT probed for causality" in out
    assert json.loads((trained / "test.json").read_text())["protocol"]["certificate"] == {"causal": None}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model.init_args.segment_len", "0"), "segment_len = 0: set it to 1 or more"),
        (("--model.init_args.segment_len", "64"), "segment_len = 64: window_len = 32 is shorter"),
        (("--model.init_args.dim", "15"), "dim = 15: n_heads = 2 must divide it"),
        (("--model.init_args.dim", "6"), "dim = 6: dim / n_heads must be even"),
        (("--model.init_args.segmentlen", "8"), "'segmentlen' is not accepted"),
        (("--model.init_args.dim", "wide"), "Parser key \"dim\""),
        (("--data.init_args.path", "nowhere"), "data.init_args.path = nowhere: there is no such folder"),
        (("--data.init_args.window_len", "100000"), "window_len = 100000: the training split has"),
        (("--data.init_args.scoring_stride", "12"), "scoring_stride = 12: set it to a multiple of segment_len = 8"),
        (
            ("--data.init_args.tokenizer", "datamodules.SentencePiece"),
            "data.init_args.tokenizer.init_args.vocab_size = 32000: the training text does not support it",
        ),
        (("--ckpt_path", "missing.ckpt"), "ckpt_path = missing.ckpt: there is no such file"),
        (("--config", "missing.yaml"), "missing.yaml"),
        (("--no_such_flag", "1"), "no_such_flag"),
        (("--model.init_args.betas", "[0.9,1.5]"), "betas = "),
        (("--model.init_args.rotary_base", "0"), "rotary_base = 0"),
        (("--model.init_args.learning_rate", ".inf"), "learning_rate = inf: set it above 0, and to a finite number"),
        (("--model.init_args.weight_decay", ".inf"), "weight_decay = inf: set it to 0 or more, and to a finite number"),
        (("--model.init_args.n_layers", "1000000000"), "16, 1000000000, 257: parameters, gradients"),
        (("--data.init_args.batch_size", "1000000000000"), "1000000000000, 32: the tokens of a batch alone need"),
        (("--trainer.max_steps", str(2**63)), f"trainer.max_steps = {2**63}: with accumulate_grad_batches = 1 these"),
        (("--trainer.max_time", '{"days": 1000000000000}'), "trainer.max_time = {'days': 1000000000000}: it is no"),
        (("--model.init_args.dim", "null"), "model.init_args.dim = null: it is no value of this setting; give it one"),
        (
            ("--config", "{data: {init_args: {tokenizer: {class_path: SentencePiece, init_args: {seed: null}}}}}"),
            "data.init_args.tokenizer.init_args.seed = null: it is no value",
        ),
        (
            ("--trainer.plugins", "lightning.fabric.plugins.XLACheckpointIO"),
            "class_path = lightning.fabric.plugins.XLACheckpointIO: ",
        ),
        (("--config", "{stall: .inf}"), "stall = inf: leave the section out, or give it settings"),
        (("--model.init_args.weight_decay", "-1"), "weight_decay = -1"),
        (("--seed_everything", "-1"), "seed_everything = -1"),
        (("--sample.top_p", "2"), "top_p = 2"),
        (("--trainer.logger", "false"), "trainer.logger = False"),
        (("--trainer.val_check_interval", "0.5"), "val_check_interval"),
        (("--trainer.enable_checkpointing", "false"), "enable_checkpointing"),
        (("--trainer.default_root_dir", "tiny.yaml"), "tiny.yaml"),
        (("--model.init_args.schedule", "cosine", "--trainer.max_steps", "-1"), "trainer.max_steps = -1"),
    ],
)  # fmt: skip
def test_bad_settings_are_one_message(run, work, arguments, message):
    status, _, err = run("fit", "--config", "tiny.yaml", "--name", "run", *arguments)
    assert status not in (0, None)
    assert message in err
    assert "Traceback" not in err
    assert len([line for line in err.splitlines() if "error" in line]) == 1
    assert not list(work.glob("lightning_logs/*/checkpoints"))
    assert not list(work.glob("lightning_logs/*/hparams.yaml"))


def test_an_unknown_key_in_a_file(run, work):
    (work / "more.yaml").write_text("trainer: {max_stepz: 3}\n")
    status, _, err = run("fit", "--config", "tiny.yaml", "--config", "more.yaml")
    assert status == 2
    assert "max_stepz" in err


def test_an_unwritable_cache_folder(run, work):
    (work / "file").write_text("not a folder")
    status, _, err = run("fit", "--config", "tiny.yaml", "--data.init_args.cache_dir", "file/cache")
    assert status == 1
    assert "data.init_args.cache_dir = file/cache: can't be written" in err


def test_a_run_is_never_overwritten(run, trained):
    assert run("fit", "--config", "tiny.yaml", "--name", "failed", "--data.init_args.window_len", 100_000)[0] == 1
    assert run("fit", "--config", "tiny.yaml", "--name", "failed")[0] == 0  # it never started: its name is free
    before = (trained / "checkpoints/last.ckpt").read_bytes()
    status, _, err = run("fit", "--config", "tiny.yaml", "--name", "run")
    assert status == 1
    assert "name = run: lightning_logs/run holds a run already" in err
    assert (trained / "checkpoints/last.ckpt").read_bytes() == before


def test_checkpoints_that_do_not_fit(run, trained, work):
    good = trained / "checkpoints/best.ckpt"
    cases = [
        ((), "ckpt_path = None: `llp test` needs a trained model"),
        (("--ckpt_path", good, "--model", "llp.Transformer"), "model.class_path = llp.Transformer: the"),
        (("--ckpt_path", good, "--model.init_args.dim", "32"), "dim = 32: the checkpoint has 16, so its weights"),
        (
            ("--ckpt_path", good, "--data.init_args.tokenizer", "datamodules.SentencePiece",
             "--data.init_args.tokenizer.init_args.vocab_size", "320"),
            "vocab_size = 320: the checkpoint has 257",
        ),
    ]  # fmt: skip
    cases += [
        (
            ("--ckpt_path", good, "--model.init_args.tie_embeddings", "true"),
            "tie_embeddings = True: the checkpoint has",
        ),
        (("--ckpt_path", good, "--model.init_args.n_heads", "4"), "n_heads = 4: the checkpoint has 2"),
        (("--config", work / "tiny.yaml"), "ckpt_path = None: `llp test` needs a trained model"),
        (("--ckpt_path", work), f"ckpt_path = {work}: it is damaged or is not a checkpoint"),
    ]
    shared = ("--ckpt_path", good, "--model.init_args.share_key_value", "true")
    cases.append((shared, "model.init_args.share_key_value = True: the checkpoint has False"))
    truncated, foreign = work / "truncated.ckpt", work / "foreign.ckpt"
    truncated.write_bytes(good.read_bytes()[:-500])
    cut = trained / "checkpoints/cut.ckpt"
    cut.write_bytes(good.read_bytes()[:-500])
    torch.save({"state_dict": {}}, foreign)
    cases += [
        (("--ckpt_path", truncated), f"ckpt_path = {truncated}: it is damaged or is not a checkpoint"),
        (("--ckpt_path", cut), f"the newest whole one beside it is {trained / 'checkpoints/last.ckpt'}"),
        (("--ckpt_path", foreign), f"ckpt_path = {foreign}: the file was not written by `llp fit`"),
        (("--ckpt_path", work / "tiny.yaml"), "it is damaged or is not a checkpoint"),
    ]
    for arguments, message in cases:
        status, out, err = run("test", *arguments)
        assert status == 1, message
        assert message in err
        assert "Traceback" not in err
        assert "perplexity" not in out
    assert not (trained / "test.json").exists()


def test_another_tokenizer_of_equal_size_is_refused(run, work):
    """Whatever the data: the same number of tokens is not the same tokenizer."""
    tokenizer = ("--data.init_args.tokenizer", "datamodules.SentencePiece")
    small = ("--data.init_args.tokenizer.init_args.vocab_size", 300)
    status, _, err = run("fit", "--config", "tiny.yaml", "--name", "run", *tokenizer, *small)
    assert status == 0, err
    checkpoint = ("--ckpt_path", work / "lightning_logs/run/checkpoints/best.ckpt")
    for subcommand in ("test", "context", "fit"):
        longer = ("--trainer.max_steps", 8) if subcommand == "fit" else ()
        flags = ("--data.init_args.tokenizer.init_args.sample_lines", 30, *longer)
        status, out, err = run(subcommand, *checkpoint, *flags)
        assert status == 1
        assert "the checkpoint was trained with tokenizer" in err
        assert "perplexity" not in out


def test_a_bug_keeps_its_traceback(run, work, monkeypatch):
    monkeypatch.setattr(WikiText103, "setup", lambda self, stage: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run("fit", "--config", "tiny.yaml")
