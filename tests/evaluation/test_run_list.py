"""`llp runs`: what the files of runs say, side by side; whatever state they are in."""

import csv
import json
import math

import pytest
import yaml

from llp.commands import runs as command
from llp.errors import SettingError
from llp.evaluation.run_list import find_runs, format_runs
from llp.training.run_lock import locked

CONFIG = {
    "name": "set by the test",
    "seed_everything": 0,
    "model": {"class_path": "llp.LLP", "init_args": {"dim": 16, "segment_len": 8, "learning_rate": 0.01}},
    "data": {
        "class_path": "datamodules.WikiText103",
        "init_args": {
            "path": "text",
            "window_len": 32,
            "tokenizer": {"class_path": "datamodules.SentencePiece", "init_args": {"vocab_size": 1000}},
        },
    },
    "trainer": {"max_steps": 6, "callbacks": None},
}


def make_run(root, name, validation=2.0, test=None, state="finished", settings=None, **model):
    """A run's folder with all its files: bits per byte of validation and test."""
    folder = root / "lightning_logs" / name
    (folder / "checkpoints").mkdir(parents=True)
    config = json.loads(json.dumps(CONFIG | {"name": name} | (settings or {})))
    config["model"]["init_args"] |= model
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    figures = {"loss": 1.5 * validation, "word_perplexity": 1e12, "bits_per_byte": validation}
    record = {
        "architecture": "llp.LLP", "parameters": 12_345, "state": state, "step": 4, "total_steps": 6,
        "trained_tokens": 1_000_000, "training_seconds": 3_723.4,
        "best_validation": {"step": 4, "complete": True, **figures}, "validations": [],
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(record))
    if test is not None:
        write_report(folder / "test.json", test)
    return folder


def write_report(path, bits, step=4, complete=True, text="abc"):
    row = {"loss": 1.25 * bits, "word_perplexity": 1234.5, "bits_per_byte": bits}
    protocol = {"step": step, "complete": complete, "data_fingerprint": text}
    path.write_text(json.dumps({"protocol": protocol, "rows": [row]}))


def names(root):
    return [*find_runs(root / "lightning_logs").run]


def settings(root):
    """The columns of the settings that differ."""
    runs = find_runs(root)
    return {name.removeprefix("settings."): [*runs[name]] for name in runs if name.startswith("settings.")}


def test_runs_are_sorted_by_test_then_validation(tmp_path):
    make_run(tmp_path, "a", validation=1.0)  # never tested
    make_run(tmp_path, "b", validation=3.0, test=2.5)
    make_run(tmp_path, "c", validation=2.0, test=2.75)
    make_run(tmp_path, "d", validation=0.5)
    part = make_run(tmp_path, "e", validation=4.0)
    write_report(part / "test.json", 0.1, complete=False)  # of a part: no figure to compare by
    assert names(tmp_path) == ["b", "c", "d", "a", "e"]
    assert [*find_runs(tmp_path).run] == names(tmp_path)  # the folder above is understood too


def test_only_settings_that_differ_are_shown_under_short_names(tmp_path):
    make_run(tmp_path, "a", learning_rate=0.02)
    make_run(tmp_path, "b")
    other = {"data": {"class_path": "datamodules.WikiText103", "init_args": {"tokenizer": {
        "class_path": "datamodules.Bytes"}, "path": "text", "window_len": 32}},
        "model": {"class_path": "llp.Transformer", "init_args": {"dim": 16, "tokenizer": 1}}}  # fmt: skip
    make_run(tmp_path, "c", settings=other)
    assert settings(tmp_path) == {
        "learning_rate": [0.02, 0.01, None],
        "segment_len": [8, 8, None],
        "data.tokenizer": ["datamodules.SentencePiece", "datamodules.SentencePiece", "datamodules.Bytes"],
        "vocab_size": [1000, 1000, None],
        "model.tokenizer": [None, None, 1],
    }


def test_a_run_without_a_configuration_does_not_make_all_settings_differ(tmp_path):
    make_run(tmp_path, "a", learning_rate=0.02)
    make_run(tmp_path, "b")
    (tmp_path / "lightning_logs/by_hand/checkpoints").mkdir(parents=True)
    assert settings(tmp_path) == {"learning_rate": [0.02, 0.01, None]}


def test_the_table(tmp_path):
    make_run(tmp_path, "long-name", validation=1.75, test=1.5, dim=32)
    make_run(tmp_path, "other", validation=2.5, state="running")
    head, rule, *lines = format_runs(find_runs(tmp_path)).splitlines()
    assert rule == "-" * len(head)
    assert head.split("  ")[0] == "run"
    assert lines[0].split() == ["long-name", "finished", "LLP", "32", "12,345", "4/6", "1,000,000", "1:02:03",
                                "2.6250", "1.7500", "1.5000", "1,234.5000"]  # fmt: skip
    # Nobody trains in it any more.
    assert lines[1].split() == ["other", "unfinished", "LLP", "16", "12,345", "4/6", "1,000,000", "1:02:03",
                                "3.7500", "2.5000", "-", "-"]  # fmt: skip
    assert len(lines) == 2
    assert lines[0].index("LLP") == lines[1].index("LLP") == head.index("architecture")


def test_a_run_whose_process_lives_is_running(tmp_path):
    killed, alive = make_run(tmp_path, "killed", state="running"), make_run(tmp_path, "alive", state="running")
    with locked(alive):
        runs = find_runs(tmp_path)
        assert dict(zip(runs.run, runs.state, strict=True)) == {"killed": "unfinished", "alive": "running"}
    with locked(killed), locked(alive):  # to look leaves no lock behind
        pass


def test_a_metric_of_a_part_is_marked(tmp_path):
    folder = make_run(tmp_path, "a")
    assert "* on a part" not in format_runs(find_runs(tmp_path))
    write_report(folder / "test.json", 1.0, complete=False)
    text = format_runs(find_runs(tmp_path))
    assert "*1.0000" in text
    assert "* on a part of the split only" in text


def test_tests_on_different_texts_are_not_held_against_each_other_in_silence(tmp_path):
    make_run(tmp_path, "a", test=1.0)
    write_report(make_run(tmp_path, "b") / "test.json", 1.0)
    assert "same text" not in format_runs(find_runs(tmp_path))
    write_report(make_run(tmp_path, "c") / "test.json", 1.0, text="def")
    assert "The runs were not all tested on the same text" in format_runs(find_runs(tmp_path))


@pytest.mark.parametrize("name", ["config.yaml", "run.json", "test.json"])
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[1, 2]", b"{}"])
def test_a_damaged_file_is_named_and_the_run_is_shown(tmp_path, name, content):
    folder = make_run(tmp_path, "a", test=1.0)
    (folder / name).write_bytes(content)
    runs = find_runs(tmp_path)
    expected = "" if (name, content) == ("config.yaml", b"{}") else name
    assert [*runs.damaged] == [expected]
    text = format_runs(runs)
    assert (f"Damaged: a/{name}" in text) == bool(expected)
    assert text.splitlines()[2].startswith("a  ")


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("run.json", '"trained_tokens": '),
        ("test.json", '"loss": '),
    ],
)
def test_one_other_digit_is_damage(run, trained, name, key):
    """The files as a run writes them: valid with other digits, too."""
    path = trained / name
    assert run("test", "--ckpt_path", trained)[0] == 0
    assert [*find_runs(trained.parent).damaged] == [""]
    text = path.read_text()
    place = text.index(key) + len(key)
    path.write_text(text[:place] + str((int(text[place]) + 1) % 10) + text[place + 1 :])
    runs = find_runs(trained.parent)
    assert [*runs.damaged] == [name]
    assert f"Damaged: run/{name}" in format_runs(runs)


def test_runs_of_which_little_is_there(tmp_path):
    """Nothing but a configuration, nothing but checkpoints, figures that are not finite; other folders are no runs."""
    logs = tmp_path / "lightning_logs"
    for name in ("configured", "old", "empty", "diverged"):
        (logs / name).mkdir(parents=True)
    (logs / "slurm-7.log").write_text("")
    (logs / "configured/config.yaml").write_text(yaml.safe_dump(CONFIG))
    (logs / "old/checkpoints").mkdir()
    write_report(logs / "diverged/test.json", math.nan)
    text = (logs / "diverged/test.json").read_text()
    (logs / "diverged/test.json").write_text(text.replace("NaN", "null"))  # as reports write it
    runs = find_runs(tmp_path)
    by_name = runs.set_index("run")
    assert by_name.state.to_dict() == {"configured": "not started", "old": "unknown", "diverged": "not started"}
    assert not runs.damaged.any()
    assert by_name.test_loss["diverged"] is None
    assert by_name.architecture["configured"] == "llp.LLP"
    assert len(format_runs(runs).splitlines()) == 2 + 3
    with pytest.raises(SettingError, match=r"FOLDER = .*nowhere: there are no runs in it"):
        find_runs(tmp_path / "nowhere")


def test_the_runs_as_csv(tmp_path):
    make_run(tmp_path, "a", test=1.0)
    make_run(tmp_path, "b", segment_len=16)
    command.run([str(tmp_path), "--csv", str(tmp_path / "runs.csv")])
    with (tmp_path / "runs.csv").open(newline="") as stream:
        first, second = csv.DictReader(stream)
    assert [*first] == [
        "run", "state", "architecture", "settings.segment_len", "parameters", "step", "total_steps", "trained_tokens",
        "training_seconds", "validation_step", "validation_complete", "validation_loss", "validation_word_perplexity",
        "validation_bits_per_byte", "validation_accuracy", "test_step", "test_complete", "test_loss",
        "test_word_perplexity", "test_bits_per_byte", "test_accuracy", "damaged",
    ]  # fmt: skip
    assert (first["run"], first["settings.segment_len"], second["settings.segment_len"]) == ("a", "8", "16")
    assert (first["test_bits_per_byte"], second["test_bits_per_byte"], first["step"]) == ("1.0", "", "4")
    assert (second["validation_loss"], first["training_seconds"]) == ("3.0", "3723.4")
