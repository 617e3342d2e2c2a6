"""Settings with which nothing would be trained, or that can't be meant: said before long work."""

import json
import warnings
from typing import Union

import pytest
import torch
from lightning.pytorch.cli import LightningArgumentParser

from datamodules import WikiText103
from helpers.refusals import assert_one_message
from llp.commands.parser import keep_integers

COSINE = ("--model.init_args.schedule", "cosine")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("max_steps", 0), "trainer.max_steps = 0: nothing would be trained; set it to the number of optimizer steps"),
        (("max_epochs", 0), "trainer.max_epochs = 0: nothing would be trained; leave it out"),
        (("limit_train_batches", 0), "trainer.limit_train_batches = 0: nothing would be trained; leave it out"),
        (("limit_train_batches", "0.0"), "trainer.limit_train_batches = 0.0: nothing would be trained"),
        (("val_check_interval", 0), "trainer.val_check_interval = 0: set it to 1 or more"),
        (("val_check_interval", -3), "trainer.val_check_interval = -3: set it to 1 or more"),
        (("check_val_every_n_epoch", 0), "trainer.check_val_every_n_epoch = 0: set it to 1 or more"),
        (("log_every_n_steps", 0), "trainer.log_every_n_steps = 0: set it to 1 or more"),
        (("log_every_n_steps", -1), "trainer.log_every_n_steps = -1: set it to 1 or more"),
        (("accumulate_grad_batches", 0), "trainer.accumulate_grad_batches = 0: set it to 1 or more"),
        (("accumulate_grad_batches", -1), "trainer.accumulate_grad_batches = -1: set it to 1 or more"),
        (("gradient_clip_val", -1), "trainer.gradient_clip_val = -1: set it above 0"),
        (("max_steps", -1, *COSINE), "trainer.max_steps = -1: the cosine falls until the last step; set it to"),
        (("strategy", "ddp_spawn"), "trainer.strategy = ddp_spawn: a run can't be handed to processes"),
        # Lightning's own words
        (("callbacks", "lightning.pytorch.callbacks.Timer"), "Interval.step: 'step'>): it can't be written"),
        (("max_steps", -2), "`max_steps` must be"),
        (("devices", 0), "devices"),
        (("devices", -1), "trainer: `devices` selected with `CPUAccelerator` should be an int > 0."),
        (("num_nodes", 0), "trainer: `num_nodes` must be a positive integer, but got 0."),
        (("limit_val_batches", -1), "limit_val_batches"),
        (("barebones", "true"), "trainer: `Trainer(barebones=True"),
    ],
)  # fmt: skip
def test_settings_that_train_nothing_are_refused_before_the_text_is_prepared(run, work, arguments, message):
    name, value, *others = arguments
    assert_one_message(run("fit", "--config", "tiny.yaml", f"--trainer.{name}", value, *others), message)
    assert {path.name for path in work.iterdir()} == {"tiny.yaml", "wikitext"}


@pytest.mark.parametrize(
    "arguments",
    [("val_check_interval", 1000), ("val_check_interval", "null"), ("limit_val_batches", 0), ("gradient_clip_val", 0)],
)
def test_unusual_settings_that_make_sense_are_left_alone(run, work, arguments):
    status, _, err = run("fit", "--config", "tiny.yaml", "--name", "run", f"--trainer.{arguments[0]}", arguments[1])
    assert status == 0, err
    assert (work / "lightning_logs/run/checkpoints/last.ckpt").is_file()


def test_a_warm_up_that_takes_the_whole_run_is_said_once(run, work):
    def warnings_at(warmup_steps):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            flags = ("--model.init_args.warmup_steps", warmup_steps, "--trainer.max_steps", 3)
            assert run("fit", "--config", "tiny.yaml", *flags)[0] == 0
        return [str(warning.message) for warning in caught if "warmup_steps" in str(warning.message)]

    (message,) = warnings_at(3)
    assert "model.init_args.warmup_steps = 3: the warm-up takes all of trainer.max_steps = 3" in message
    assert warnings_at(2) == []


def test_a_resumed_run_can_not_end_before_it_stands(run, trained):
    last = ("--name", "run", "--ckpt_path", "last")
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    message = "trainer.max_steps = 5: the checkpoint has trained for 6 steps, and counts to the whole run's; set"
    assert_one_message(run("fit", *last, "--trainer.max_steps", 5), message)
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before


def test_a_resumed_run_that_is_complete_has_nothing_left_to_do(run, trained, caplog):
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    status, _, err = run("fit", "--name", "run", "--ckpt_path", "last")
    assert status == 0, err
    assert "Nothing is left to do: all 6 steps of trainer.max_steps are trained" in caplog.messages
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before


def test_a_run_that_is_resumed_under_another_name_says_so(run, trained, caplog):
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    status, _, err = run("fit", "--name", "other", "--ckpt_path", trained, "--trainer.max_steps", 8)
    assert status == 0, err
    message = "lightning_logs/run is resumed at step 6 as a run of its own, lightning_logs/other; it stays as it is"
    assert message in caplog.messages
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before


def test_an_architecture_whose_module_is_not_found_names_it_and_the_remedy(run, work, trained):
    path = trained / "checkpoints/best.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["architecture"] = "own_models.Mine"
    checkpoint["config"] = checkpoint["config"].replace("llp.LLP", "own_models.Mine")
    torch.save(checkpoint, work / "own.ckpt")
    for subcommand in ("test", "validate", "predict", "generate", "context", "fit"):
        status, _, err = run(subcommand, "--ckpt_path", work / "own.ckpt")
        assert status in (1, 2)
        assert "class_path = own_models.Mine: " in err
        assert "PYTHONPATH" in err
        assert len([line for line in err.splitlines() if line.strip()]) == 1


def test_one_batch_is_not_all_of_them_in_whichever_order_a_type_names_its_parts():
    parser = LightningArgumentParser()
    parser.add_argument("--limit", type=Union[float, int, None])  # noqa: UP007
    assert type(parser.parse_args(["--limit", "1"]).limit) is float  # what has to be prevented
    keep_integers(parser)
    for text, value in (("1", 1), ("0", 0), ("1.0", 1.0), ("0.5", 0.5), ("null", None)):
        parsed = parser.parse_args(["--limit", text]).limit
        assert (parsed, type(parsed)) == (value, type(value))


def test_early_stopping_on_a_figure_that_is_not_there_is_one_message(run, work):
    callback = (
        "--trainer.callbacks=lightning.pytorch.callbacks.EarlyStopping",
        "--trainer.callbacks.init_args.monitor=x",
    )
    outcome = run("fit", "--config", "tiny.yaml", *callback)
    assert_one_message(outcome, "trainer.callbacks: Early stopping conditioned on metric `x` which is not available")


def test_a_package_that_lightning_lacks_is_one_message_and_a_failed_import_keeps_its_traceback(run, work, monkeypatch):
    def advise(self, stage):
        raise ModuleNotFoundError("`DeviceStatsMonitor` cannot log CPU stats as `psutil` is not installed.")

    def fail(self, stage):
        import no_such_module  # noqa: F401

    monkeypatch.setattr(WikiText103, "setup", advise)
    assert_one_message(run("fit", "--config", "tiny.yaml", "--name", "one"), "as `psutil` is not installed")
    monkeypatch.setattr(WikiText103, "setup", fail)
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        run("fit", "--config", "tiny.yaml", "--name", "other")


@pytest.mark.parametrize(
    ("name", "own", "message"),
    [
        ("lightning.pytorch.callbacks.LearningRateFinder", {}, "trainer.callbacks = LearningRateFinder: it trains by"),
        ("lightning.pytorch.callbacks.BackboneFinetuning", {}, "trainer.callbacks = BackboneFinetuning: no model here"),
        (
            "lightning.pytorch.callbacks.ModelPruning",
            {"pruning_fn": "l1_unstructured"},
            "= ModelPruning: it puts other",
        ),
        ("lightning.pytorch.callbacks.OnExceptionCheckpoint", {"dirpath": "x"}, "set checkpoint.every_n_train_steps"),
        ("llp.checkpoints.callback.RunCheckpoint", {}, "trainer: Found more than one stateful callback of type"),
    ],
)
def test_callbacks_that_can_not_work_are_refused_before_the_text_is_prepared(run, work, name, own, message):
    settings = [f"--trainer.callbacks.init_args.{setting}={value}" for setting, value in own.items()]
    assert_one_message(run("fit", "--config", "tiny.yaml", f"--trainer.callbacks={name}", *settings), message)
    assert {path.name for path in work.iterdir()} == {"tiny.yaml", "wikitext"}


def test_a_run_names_its_own_checkpoints_beside_those_of_another_callback(run, work):
    callback = "--trainer.callbacks=lightning.pytorch.callbacks.ModelCheckpoint"
    status, out, err = run("fit", "--config", "tiny.yaml", "--name", "run", callback)
    assert status == 0, err
    rows = dict(line.split(maxsplit=1) for line in out.splitlines() if line.startswith(("  best ", "  last ")))
    assert rows["best"].endswith("(lightning_logs/run/checkpoints/best.ckpt)")
    assert rows["last"].endswith("(lightning_logs/run/checkpoints/last.ckpt)")
    assert len(list((work / "lightning_logs/run/checkpoints").glob("*.ckpt"))) == 3
    record = json.loads((work / "lightning_logs/run/run.json").read_text())
    assert record["best_validation"] == min(record["validations"], key=lambda figures: figures["loss"])
