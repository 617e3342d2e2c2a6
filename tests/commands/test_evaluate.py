"""`llp evaluate`: figures that are those of `llp test`, tasks of the user's own, the report, what is refused."""

import json
import sys

import datasets
import huggingface_hub.constants
import pytest
import torch
from lm_eval.tasks import TaskManager

from helpers.letters import lettered
from helpers.refusals import assert_one_message
from llp.harness import evaluation
from llp.harness.evaluation import evaluate_tasks

LOCAL = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: context
target_delimiter: ""
doc_to_choice: choices
doc_to_target: gold
metric_list: [{{metric: acc}}]
metadata: {{version: 3}}
"""


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """No network, a cache of the test's own; the harness's tasks, which take seconds to look through, are left out."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    looked_through = []

    def manager(include_path, include_defaults=True):
        looked_through.append(include_defaults)
        return TaskManager(include_path=include_path, include_defaults=False)

    monkeypatch.setattr(evaluation, "TaskManager", manager)
    return looked_through


def evaluate(run, folder, tasks, *options):
    status, out, err = run("evaluate", "--ckpt_path", folder, "--tasks", tasks, *options)
    assert status == 0, err
    return json.loads((folder / "evaluate.json").read_text()), out


def test_rolling_bits_are_those_of_llp_test(run, work, offline):
    """Of an architecture whose windows matter."""
    config = (work / "tiny.yaml").read_text().replace("llp.LLP", "llp.SplitAttention")
    (work / "tiny.yaml").write_text(config.replace("segment_len: 8", "segment_len: 8, latent_len: 12"))
    status, _, err = run("fit", "--config", "tiny.yaml", "--name", "run")
    assert status == 0, err
    folder = work / "lightning_logs/run"
    status, _, err = run("test", "--ckpt_path", folder)
    assert status == 0, err
    test = json.loads((folder / "test.json").read_text())
    (folder / "evaluate.json").write_text("older")
    found, out = evaluate(run, folder, "rolling_perplexity", "--batch_size", 3)
    bits = found["results"]["rolling_perplexity"]["bits_per_byte,none"]
    assert bits == pytest.approx(test["rows"][0]["bits_per_byte"], rel=1e-9)
    same = ("architecture", "checkpoint_sha256", "step", "window_len", "stride", "precision", "git_commit", "versions")
    for key in same:
        assert found["protocol"][key] == test["protocol"][key], key
    assert found["protocol"]["text"]["data_fingerprint"] == test["protocol"]["data_fingerprint"]
    assert found["protocol"]["harness"].startswith("lm-eval 0.4.")
    assert f"{bits:.4f}" in out
    assert "PARTIAL" not in out
    assert offline == [False]  # the harness's own tasks were not looked through
    assert (folder / "evaluate-1.json").read_text() == "older"


@pytest.fixture
def choices(tmp_path):
    """Tasks of a user's own: in one the likely choice is right, in the other the unlikely one."""
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, gold in (("right", 1), ("wrong", 0)):
        rows = [{"context": "cde"[:n], "choices": ["cccc", "dddd", "eeee"], "gold": gold} for n in range(4)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / f"{name}.yaml").write_text(LOCAL.format(name=name, file=folder / f"{name}.jsonl"))
    return folder


def test_the_likely_choice_is_chosen(choices):
    """Of a model that finds d likely after everything."""
    model = lettered("PerceiverAR")
    model.module.decoder.head.weight.data.zero_()
    model.module.decoder.head.bias.data.copy_(-(torch.arange(19) - 3.0).abs())
    found = evaluate_tasks(model, "right, wrong", None, include_path=str(choices))
    assert {name: one["acc,none"] for name, one in found["results"].items()} == {"right": 1.0, "wrong": 0.0}
    assert found["versions"] == {"right": 3, "wrong": 3}
    (choices / "both.yaml").write_text("group: both\ntask: [right, wrong]\naggregate_metric_list: [{metric: acc}]\n")
    found = evaluate_tasks(model, "both", None, include_path=str(choices), limit=3)
    assert found["results"]["both"]["acc,none"] == 0.5
    assert found["n-samples"]["right"] == {"original": 4, "effective": 3}
    assert list(evaluate_tasks(model, str(choices / "right.yaml"), None, limit=1)["results"]) == ["right"]


REFUSED = {
    "rigth": "there is no such task, neither in --include_path nor in the harness; did you mean right?",
    ",": "name some, with commas between them",
    "far": "can't be loaded (ConnectionError: ",
    "bad": "can't be loaded (TypeError: ",
    "code": "it runs what the model writes as a program",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_task_that_cannot_be_run_is_one_message(run, trained, choices, name):
    (choices / "far.yaml").write_text(LOCAL.format(name="far", file="x").replace("path: json", "path: some/where"))
    (choices / "bad.yaml").write_text(LOCAL.format(name="bad", file="x") + "no_such_setting: 1\n")
    (choices / "code.yaml").write_text(LOCAL.format(name="code", file=choices / "right.jsonl") + "unsafe_code: true\n")
    outcome = run("evaluate", "--ckpt_path", trained, "--tasks", name, "--include_path", choices)
    assert_one_message(outcome, f"tasks = {name}: {REFUSED[name]}")
    assert not (trained / "evaluate.json").exists()


def test_without_the_harness_it_says_what_to_install(run, trained, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "llp.commands.evaluate")
    outcome = run("evaluate", "--ckpt_path", trained, "--tasks", "rolling_perplexity")
    assert_one_message(outcome, 'lm_eval: it needs the harness: pip install "long-lora-perceiver[evaluate]"')
