"""`llp evaluate`: figures that are those of `llp test`, tasks of the user's own, the report, what is refused."""

import json
import math
import sys

import datasets
import huggingface_hub.constants
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.tasks import TaskManager

from helpers.letters import lettered
from helpers.refusals import assert_one_message
from llp import load
from llp.harness import task_loading
from llp.harness.evaluation import evaluate_tasks
from llp.harness.harness_model import HarnessModel

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

    def manager(include_path, include_defaults=True, metadata=None):
        looked_through.append(include_defaults)
        return TaskManager(include_path=include_path, include_defaults=False, metadata=metadata)

    monkeypatch.setattr(task_loading, "TaskManager", manager)
    return looked_through


def evaluate(run, folder, tasks, *options):
    status, out, err = run("evaluate", "--ckpt_path", folder, "--tasks", tasks, *options)
    assert status == 0, err
    return json.loads((folder / "evaluate.json").read_text()), out


@pytest.mark.parametrize("architecture", ["llp.LLP", "llp.SplitAttention"])
def test_rolling_nats_are_those_of_llp_test(run, work, architecture, offline):
    config = (work / "tiny.yaml").read_text().replace("llp.LLP", architecture)
    if architecture == "llp.SplitAttention":
        config = config.replace("segment_len: 8", "segment_len: 8, latent_len: 12")
    (work / "tiny.yaml").write_text(config)
    status, _, err = run("fit", "--config", "tiny.yaml", "--name", "run")
    assert status == 0, err
    folder = work / "lightning_logs/run"
    status, _, err = run("test", "--ckpt_path", folder)
    assert status == 0, err
    test = json.loads((folder / "test.json").read_text())
    found, out = evaluate(run, folder, "rolling_perplexity", "--batch_size", 3)
    (row,) = found["tasks"]
    total = test["rows"][0]
    assert row["nats"] == pytest.approx(total["nats"], rel=1e-9)
    figures = {figure["metric"]: figure["value"] for figure in row["figures"]}
    assert figures["bits_per_byte"] == pytest.approx(total["bits_per_byte"], rel=1e-9)
    # A document that begins and ends in white space has two empty words for the harness.
    n_documents = max(1, len(test["rows"]) - 1)
    assert (row["words"], row["harness_words"]) == (total["plain_words"], total["plain_words"] + 2 * n_documents)
    assert figures["word_perplexity"] == pytest.approx(math.exp(total["nats"] / row["harness_words"]), rel=1e-9)
    assert row["bytes"] == row["harness_bytes"] == total["bytes"]
    same = ("architecture", "checkpoint_sha256", "step", "window_len", "stride", "precision", "git_commit", "versions")
    for key in same:
        assert found["protocol"][key] == test["protocol"][key], key
    assert found["protocol"]["text"]["data_fingerprint"] == test["protocol"]["data_fingerprint"]
    assert found["protocol"]["harness"].startswith("lm-eval 0.4.")
    assert f"{row['nats']:,.4f} nats" in out
    assert "word counts are not a benchmark's" in out
    assert "PARTIAL" not in out
    assert offline == [False]  # nothing but this project's own tasks was looked through


def test_all_tasks_on_the_first_examples(run, trained):
    (trained / "evaluate.json").write_text("older")
    found, out = evaluate(run, trained, "last_word,continuation , rolling_perplexity", "--limit", 2)
    assert [row["task"] for row in found["tasks"]] == ["last_word", "continuation", "rolling_perplexity"]
    assert [row["examples"] for row in found["tasks"]] == [2, 2, 1]
    assert found["tasks"][0]["examples_in_all"] > 2
    assert [row["version"] for row in found["tasks"]] == [1.0] * 3
    assert found["protocol"]["limit"] == 2
    assert "PARTIAL: the first 2 examples of each task at most." in out
    lines = out.splitlines()
    assert lines[0].split() == ["task", "metric", "version", "shots", "examples", "value", "standard", "error"]
    assert lines[2].split()[:5] == ["last_word", "perplexity", "1.0", "0", "2"]
    assert lines[-1] == f"Written to {trained / 'evaluate.json'}"
    assert (trained / "evaluate-1.json").read_text() == "older"


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
    rows = evaluate_tasks(model, "right,wrong", None, include_path=str(choices))
    assert [(row["task"], row["version"], row["examples"]) for row in rows] == [("right", 3, 4), ("wrong", 3, 4)]
    assert [row["figures"][0]["value"] for row in rows] == [1.0, 0.0]
    (choices / "both.yaml").write_text("group: both\ntask: [right, wrong]\naggregate_metric_list: [{metric: acc}]\n")
    (choices / "same.yaml").write_text("group: same\ntask: [right, wrong]\n")
    rows = evaluate_tasks(model, "both", None, include_path=str(choices), limit=3)
    found = {row["task"]: (row["examples"], row["figures"][0]["value"]) for row in rows}
    assert found == {"both": (6, 0.5), "right": (3, 1.0), "wrong": (3, 0.0)}
    assert {row["task"] for row in evaluate_tasks(model, "same", None, include_path=str(choices))} == {"right", "wrong"}
    by_file = evaluate_tasks(model, str(choices / "right.yaml"), None, limit=1)
    assert [(row["task"], row["examples"]) for row in by_file] == [("right", 1)]


def test_texts_are_those_of_llp_generate(run, trained):
    settings = {"until": ["t", "\n"], "max_gen_toks": 20, "do_sample": False}
    prompts = ["the cat sat on", "", "a mat " * 20]
    requests = [Instance("generate_until", {}, (prompt, settings), 0) for prompt in prompts]
    found = HarnessModel(load(trained).as_text_model()).generate_until(requests, True)
    (trained / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    arguments = ("generate", "--ckpt_path", trained, "--prompts", trained / "prompts.jsonl", "--temperature", 0)
    status, out, err = run(*arguments, "--max_tokens", 20, "--stop", "t", "\n")
    assert status == 0, err
    assert found == [json.loads(line)["completions"][0] for line in out.splitlines()]


REFUSED = {
    "rigth": "there is no such task: neither here (continuation, last_word, rolling_perplexity) nor in --include_path "
    "nor in the harness; did you mean right?",
    ",": "name some, with commas between them",
    "far": "its data come from the network (",
    "bad": "it can't be loaded (TypeError: ",
    "code": "it runs what the model writes as a program",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_task_that_cannot_be_run_is_one_message(run, trained, choices, name):
    (choices / "far.yaml").write_text(LOCAL.format(name="far", file="x").replace("path: json", "path: some/where"))
    (choices / "bad.yaml").write_text(LOCAL.format(name="bad", file="x") + "no_such_setting: 1\n")
    (choices / "code.yaml").write_text(LOCAL.format(name="code", file=choices / "right.jsonl") + "unsafe_code: true\n")
    outcome = run("evaluate", "--ckpt_path", trained, "--tasks", name, "--include_path", choices)
    assert_one_message(outcome, f"tasks = {name.strip(',')}: {REFUSED[name]}")
    assert not (trained / "evaluate.json").exists()


def test_without_the_harness_it_says_what_to_install(run, trained, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    monkeypatch.delitem(sys.modules, "llp.commands.evaluate")
    outcome = run("evaluate", "--ckpt_path", trained, "--tasks", "last_word")
    assert_one_message(outcome, 'lm_eval: it needs the harness: pip install "long-lora-perceiver[evaluate]"')
