"""The command line, from a YAML to a score: real runs of a tiny model."""

import csv
import json

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import llp
from datamodules import Bytes, WikiText103
from helpers.refusals import assert_one_message

OWN_SETTINGS = {
    "ShiftedSegments": {"segment_len": 8},
    "PerceiverAR": {"latent_len": 16, "history_dropout": 0.25},
    "CompressedAttention": {"latent_len": 16, "history_len": 16, "compressed_len": 8},
}
"""One of each kind: local, with latents, with latents and a compressed history."""


@pytest.mark.parametrize("name", OWN_SETTINGS)
def test_architectures_train_test_and_generate(run, work, name):
    config = yaml.safe_load((work / "tiny.yaml").read_text())
    del config["model"]["init_args"]["segment_len"]
    config["model"] = {"class_path": f"llp.{name}", "init_args": config["model"]["init_args"] | OWN_SETTINGS[name]}
    (work / "own.yaml").write_text(yaml.safe_dump(config))
    status, _, err = run("fit", "--config", "own.yaml", "--name", "run")
    assert status == 0, err
    checkpoint = work / "lightning_logs/run/checkpoints/last.ckpt"
    status, out, err = run("test", "--ckpt_path", checkpoint)
    assert status == 0, err
    assert "Probed for causality" in out
    report = json.loads((work / "lightning_logs/run/test.json").read_text())
    text = (work / "wikitext/wiki.test.tokens").read_bytes()
    assert report["rows"][0]["tokens"] == len(text)  # each once
    assert report["protocol"]["certificate"]["causal"] is True
    # Windows of 32, stride 16; the local one reaches back two half segments of 4.
    contexts = {"ShiftedSegments": (9, 12)}.get(name, (17, 32))
    assert (report["protocol"]["context_least"], report["protocol"]["context_greatest"]) == contexts
    status, out, err = run("generate", "--ckpt_path", checkpoint, "--prompt", "the cat", "--max_tokens", 40)
    assert status == 0, err
    assert out.startswith("the cat")
    assert len(out) > len("the cat") + 5

    events = EventAccumulator(str(work / "lightning_logs/run"))
    events.Reload()
    trained = OWN_SETTINGS[name].get("latent_len", 32)
    assert [event.value for event in events.Scalars("train/tokens")] == [4 * trained * step for step in range(1, 7)]
    assert [event.value for event in events.Scalars("train/input_tokens")] == [4 * 32 * step for step in range(1, 7)]
    samples = [event.step for event in events.Tensors("sample/text_summary")]
    assert samples == [3, 5]  # where `val/loss` is logged


def test_what_a_run_shows(trained):
    assert {path.name for path in (trained / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    events = EventAccumulator(str(trained))
    events.Reload()
    tags = events.Tags()["scalars"]
    training = ("loss", "learning_rate", "grad_norm", "tokens", "tokens_per_second", "mfu", "data_wait")
    for tag in training:
        assert [event.step for event in events.Scalars(f"train/{tag}")] == [0, 1, 2, 3, 4, 5], tag
    for tag in ("loss", "perplexity", "word_perplexity", "bits_per_byte"):
        assert [event.step for event in events.Scalars(f"val/{tag}")] == [3, 5], tag  # the last step too
        assert f"final/{tag}" in tags
    assert [event.value for event in events.Scalars("train/tokens")] == [4 * 32 * (step + 1) for step in range(6)]
    assert events.Scalars("train/loss")[5].value < events.Scalars("train/loss")[0].value
    assert all(event.value > 0 for event in events.Scalars("train/grad_norm"))
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["model"]["init_args"]["segment_len"] == 8
    assert "vocab_size" not in config["model"]["init_args"]


def test_validate_writes_its_report(run, trained):
    checkpoint = trained / "checkpoints/last.ckpt"
    status, out, err = run("validate", "--ckpt_path", checkpoint)
    assert status == 0, err
    assert "validation  (all)" in out
    assert "unigram" in out
    assert "robed" not in out  # it probes nothing, and says nothing of it
    assert not (trained / "test.json").exists()
    report = json.loads((trained / "validation.json").read_text())
    assert report["protocol"]["word_count"] == "whitespace-separated words and line ends"
    (row,) = report["rows"]
    text = (trained.parents[1] / "wikitext/wiki.valid.tokens").read_bytes()
    n_words = len(text.split()) + text.count(b"\n")
    assert (row["split"], row["document"], row["words"]) == ("validation", None, n_words)
    assert row["tokens"] == row["bytes"] == len(text)
    with (trained / "validation.csv").open(newline="") as stream:
        (csv_row,) = csv.DictReader(stream)
    assert float(csv_row["loss"]) == row["loss"]
    events = EventAccumulator(str(trained))
    events.Reload()
    assert row["loss"] == pytest.approx(events.Scalars("val/loss")[-1].value, rel=1e-6)  # that of the last step


def test_loss_over_context(run, trained):
    """Contexts up to the longest, the table that is shown and the files; `tests/evaluation` computes the losses."""
    arguments = ("context", "--ckpt_path", trained / "checkpoints/best.ckpt", "--n_blocks", 5)
    status, out, err = run(*arguments, "--max_context", 20, "--block_len", 4)
    assert status == 0, err
    with (trained / "context.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["context"]) for row in rows] == [0, 1, 2, 4, 8, 16, 20]
    for row, line in zip(rows, out.splitlines()[1:], strict=False):
        assert line.split()[:2] == [row["context"], f"{float(row['loss']):.4f}"]
        assert line.split()[3] == f"{float(row['standard_error']):.4f}"
    assert (trained / "context.png").read_bytes().startswith(b"\x89PNG")
    assert_one_message(run(*arguments, "--max_context", 10**6), "max_context = 1000000")
    assert_one_message(run(*arguments, "--block_len", 99), "block_len = 99")


def test_a_loaded_model_is_tested_from_python_as_the_command_does(run, trained, wikitext, tmp_path, capsys):
    """CausalityCheck and report included, beside the run that it comes from; without a Trainer's callbacks."""
    from lightning.pytorch import Trainer

    assert run("test", "--ckpt_path", trained)[0] == 0
    expected = json.loads((trained / "test.json").read_text())
    data = WikiText103(str(wikitext), cache_dir=str(tmp_path / "c"), tokenizer=Bytes(), window_len=32, batch_size=2)
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, use_distributed_sampler=False)
    (figures,) = trainer.test(llp.load(trained).module, data, verbose=False)
    report = json.loads((trained / "test.json").read_text())
    assert figures["test/bits_per_byte"] == pytest.approx(expected["rows"][0]["bits_per_byte"], rel=1e-6)
    assert report["rows"][0]["bits_per_byte"] == pytest.approx(expected["rows"][0]["bits_per_byte"], rel=1e-6)
    assert report["protocol"]["certificate"]["causal"] is True
    assert report["protocol"]["checkpoint_sha256"] == expected["protocol"]["checkpoint_sha256"]
    assert "Probed for causality" in capsys.readouterr().out
