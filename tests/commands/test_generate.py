"""`llp generate`: prompts in files, many texts side by side, stop strings, what is refused."""

import json

import pytest
import torch

from helpers.refusals import assert_one_message
from llp import load
from llp.generation.continuation import continue_text

PROMPTS = ["the cat", "a", "on a mat, the cat sat on a mat"]
SETTINGS = ("--max_tokens", 25, "--temperature", 0.8)


def lines(text):
    return [json.loads(line) for line in text.splitlines()]


def alone(model, prompt, seed, **settings):
    return "".join(continue_text(model.as_text_model(), prompt, max_tokens=25, temperature=0.8, seed=seed, **settings))


def attentive(path):
    """A model that was trained for a few steps hardly heeds its prompt; with larger weights it does."""
    model = load(path)
    with torch.no_grad():
        for name, weight in model.module.decoder.named_parameters():
            if weight.ndim == 2 and "embed" not in name:
                weight.mul_(20)
    return model


def test_files_of_prompts(run, trained, monkeypatch):
    """Each completion is the one that its prompt has alone, whatever the batch; what a line also holds is kept."""
    monkeypatch.setattr("llp.commands.trained_model.load", attentive)
    model = attentive(trained)
    expected = [[alone(model, prompt, seed) for seed in (3, 4)] for prompt in PROMPTS]
    assert len({text for texts in expected for text in texts}) == 6
    (trained / "in.txt").write_text("\n\n".join(PROMPTS) + "\r\n")
    objects = [{"id": number, "prompt": prompt, "tags": ["ä"]} for number, prompt in enumerate(PROMPTS)]
    (trained / "in.jsonl").write_text("".join(json.dumps(one) + "\n" for one in objects))
    arguments = ("generate", "--ckpt_path", trained, *SETTINGS, "--seed", 3, "--n_samples", 2)
    status, out, err = run(*arguments, "--prompts", trained / "in.txt", "--batch_size", 4)
    assert status == 0, err
    both = zip(PROMPTS, expected, strict=True)
    assert lines(out) == [{"prompt": prompt, "completions": texts} for prompt, texts in both]
    output = trained / "out.jsonl"
    output.write_text("older")
    status, out, err = run(*arguments, "--prompts", trained / "in.jsonl", "--output", output)
    assert (status, out) == (0, ""), err
    both = zip(objects, expected, strict=True)
    assert lines(output.read_text(encoding="utf-8")) == [{**one, "completions": texts} for one, texts in both]
    assert (trained / "out-1.jsonl").read_text() == "older"


def test_a_prompt_with_several_samples(run, trained):
    model = load(trained)
    arguments = ("generate", "--ckpt_path", trained, *SETTINGS, "--prompt", "the cat")
    status, out, err = run(*arguments, "--n_samples", 2)
    assert status == 0, err
    assert out == "\n\n".join("the cat" + alone(model, "the cat", seed) for seed in (0, 1)) + "\n"
    assert run(*arguments)[1] == "the cat" + alone(model, "the cat", 0) + "\n"


def test_stop_strings(run, trained):
    model = load(trained).as_text_model()
    whole = "".join(continue_text(model, "the", max_tokens=60, temperature=0.3, seed=2))
    first, second = whole[20:22], whole[9:11]
    stopped = whole[: min(whole.index(first), whole.index(second))]
    arguments = ("generate", "--ckpt_path", trained, "--prompt", "the", "--max_tokens", 60, "--temperature", 0.3)
    for stop in (("--stop", first, second), ("--stop", second, "--stop", first)):
        assert run(*arguments, "--seed", 2, *stop)[:2] == (0, f"the{stopped}\n")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("in.csv", b"a", "in.csv: it is neither .txt, with one prompt in each line, nor .jsonl; rename or convert it"),
        ("in.jsonl", b'{"prompt": "a"}\n{"text": "b"}', 'in.jsonl: line 2 is no object with a text under "prompt"'),
    ],
)
def test_a_file_that_holds_no_prompts_is_refused(run, trained, name, content, message):
    (trained / name).write_bytes(content)
    outcome = run("generate", "--ckpt_path", trained, "--prompts", trained / name, "--output", trained / "out.jsonl")
    assert_one_message(outcome, f"prompts = {trained}/{message}")
    assert not (trained / "out.jsonl").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--stop", ""], "stop = '': it would end every text at once; give some text, or leave it out"),
        (["--prompt", "a", "--prompts", "b.txt"], "prompt = 'a': the prompts are those of b.txt; leave out one of"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_used(run, trained, options, message):
    assert_one_message(run("generate", "--ckpt_path", trained, *options), message)
