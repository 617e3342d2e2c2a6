"""What the harness is told about texts, against the definition: each token from the window that would score it."""

import math
import random
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from lm_eval.api import registry
from lm_eval.api.instance import Instance

from helpers import exported
from helpers.letters import LETTERS, START, lettered
from helpers.small_models import ARCHITECTURES
from llp.errors import SettingError
from llp.evaluation.token_losses import text_losses
from llp.generation.continuation import continue_text
from llp.harness.harness_model import HarnessModel
from llp.loading import load
from llp.scoring.windows import window_start

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


def ask(kind, *arguments):
    return Instance(kind, {}, arguments, 0)


def text_of(length, seed):
    return "".join(random.Random(seed).choices(LETTERS.replace("b", "").strip(), k=length))


@torch.inference_mode()
def log_probabilities(model, before):
    """Of each token to come after `before`, by definition: the logits of one position in its whole scoring window."""
    window_len, stride = model.window
    place = len(before) - 1
    start, stop = window_start(place, window_len, stride), (place // stride + 1) * stride
    window = torch.tensor([[*before[start:], *[7] * (stop - place - 1)]])
    logits = model.module(window)  # (1, T, V), of the last T positions
    return logits[0, logits.shape[1] - (stop - place)].log_softmax(-1)


def by_definition(model, context, continuation):
    tokens, total, is_greedy = model.tokens(context)[0].tolist(), 0.0, True
    for token in model.tokenizer.encode([continuation]):
        log_p = log_probabilities(model, tokens)
        total += float(log_p[token])
        is_greedy &= int(log_p.argmax()) == token
        tokens.append(int(token))
    return total, is_greedy


def greedy(model, context, n):
    tokens = model.tokens(context)[0].tolist()
    for _ in range(n):
        tokens.append(int(log_probabilities(model, tokens).argmax()))
    return model.tokenizer.decode(tokens)[len(context) :]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_log_likelihoods_are_the_definition(name, monkeypatch):
    """Contexts that are empty, shared, or longer than a window; continuations of several lengths, greedy ones too."""
    monkeypatch.setattr("llp.harness.harness_model.CHUNK_LOGITS", {"cpu": 2 * 19 * 3})  # two or more pieces
    model = lettered(name)
    contexts = ["", text_of(3, seed=1), text_of(3, seed=2), text_of(29, seed=3)]
    pairs = [(context, text_of(length, seed=length)) for context in contexts for length in (1, 8)]
    for context in contexts:
        likely = greedy(model, context, 6)
        assert set(likely) <= set(LETTERS)
        other = next(letter for letter in "cd" if letter != likely[-1])
        pairs += [(context, likely), (context, likely[:-1] + other), (context, other + likely[1:])]
    random.Random(0).shuffle(pairs)
    found = HarnessModel(model, batch_size=3).loglikelihood([ask("loglikelihood", *pair) for pair in pairs], True)
    expected = [by_definition(model, *pair) for pair in pairs]
    assert [is_greedy for _, is_greedy in found] == [is_greedy for _, is_greedy in expected]
    assert {is_greedy for _, is_greedy in found} == {True, False}
    assert [total for total, _ in found] == pytest.approx([total for total, _ in expected], rel=1e-9)


def test_an_empty_continuation_is_certain():
    assert HarnessModel(lettered("LLP")).loglikelihood([ask("loglikelihood", "cde", "")], True) == [(0.0, True)]


@pytest.mark.parametrize("name", ["LLP", "SplitAttention"])
def test_whole_texts_are_scored_as_documents(name):
    """Each is one of its own, whatever stands beside it, and its start token is not scored."""
    model = lettered(name)
    texts = [text_of(length, seed=length) for length in (40, 1, 0, 23, 40)]
    found = HarnessModel(model, batch_size=2).loglikelihood_rolling([ask("", text) for text in texts], True)
    expected = [-math.fsum(token.nats for token in text_losses(model, text)) for text in texts]
    assert found == pytest.approx(expected, rel=1e-12)
    assert [len(text_losses(model, text)) for text in texts] == [40, 1, 0, 23, 40]


def test_the_start_token_is_scored_where_a_text_has_it():
    """WikiText's documents begin with a line feed: the one that a text itself begins with is a token like others."""
    model = lettered("LLP")
    model.start_token = LETTERS.index("\n")
    total, _ = HarnessModel(model).loglikelihood([ask("loglikelihood", "", "\ncd")], True)[0]
    assert total == pytest.approx(by_definition(model, "", "\ncd")[0], rel=1e-9)


@pytest.mark.parametrize(
    ("context", "continuation", "split"),
    [
        ("cd", "ef", ("cd", "ef")),
        ("", "ef", ("", "ef")),
        ("cd \n", "ef", ("cd", " \nef")),  # as in the harness
        (" ", "ef", ("", " ef")),
        ("ca", "bd", ("c", "abd")),  # `ab` is one token
        ("cab", "b", ("cab", "b")),
    ],
)
def test_a_text_is_split_where_its_context_ends(context, continuation, split):
    model = lettered("LLP")
    before, after = HarnessModel(model).encode_pair(context, continuation)
    assert before[0] == START
    assert (model.tokenizer.decode(before), model.tokenizer.decode(after)) == split


@pytest.mark.parametrize("name", ["LLP", "PerceiverAR"])
def test_greedy_texts_are_the_definition_up_to_a_stop(name):
    model = lettered(name)
    contexts = [text_of(5, seed=4), "", text_of(31, seed=5)]
    whole = [greedy(model, context, 20) for context in contexts]
    settings = {"until": ["", whole[0][6:8], "\n\n\n"], "max_gen_toks": 20, "do_sample": False, "temperature": 0.0}
    requests = [ask("generate_until", context, settings) for context in contexts]
    requests.append(ask("generate_until", contexts[1], {"until": [], "max_gen_toks": 7}))
    found = HarnessModel(model, batch_size=2).generate_until(requests, True)
    assert found == [*(text.partition(whole[0][6:8])[0] for text in whole), whole[1][:7]]
    assert found[0] == whole[0][: whole[0].index(whole[0][6:8])]


def test_repeated_samples_have_seeds_of_their_own():
    model = lettered("LLP")
    settings = {"until": "\n\n", "max_gen_toks": 15, "do_sample": True, "temperature": 2.0, "top_k": 5}
    requests = [ask("generate_until", "cde", settings)] * 3
    requests.insert(1, ask("generate_until", "c", settings))
    found = HarnessModel(model).generate_until(requests, True)
    drawn = {"max_tokens": 15, "temperature": 2.0, "top_k": 5, "top_p": 1.0, "stop": ["\n\n"]}
    expected = ["".join(continue_text(model, "cde", seed=seed, **drawn)) for seed in range(3)]
    expected.insert(1, "".join(continue_text(model, "c", **drawn)))
    assert found == expected
    assert len(set(found)) == 4


def test_the_harness_opens_a_checkpoint_by_its_entry_point(tmp_path, monkeypatch):
    """As a harness that reads entry points does: by name, with the arguments of its command line."""
    (name, value), *_ = tomllib.loads(PYPROJECT.read_text())["project"]["entry-points"]["lm_eval.models"].items()
    monkeypatch.setattr(registry.model_registry, "_objs", dict(registry.model_registry._objs))
    registry.model_registry.register(name, target=EntryPoint(name, value, "lm_eval.models"))
    path = exported.save(tmp_path / "a.ckpt", exported.small("LLP"))
    made = registry.get_model("llp")
    model = made.create_from_arg_string(f"ckpt_path={path}", {"batch_size": 2, "device": "cpu", "max_batch_size": None})
    text = "a text of more than one window"
    (found,) = model.loglikelihood_rolling([ask("", text)], True)
    assert found == pytest.approx(-math.fsum(token.nats for token in load(path).token_losses(text)), rel=1e-6)
    assert model.batch_size == 2
    with pytest.raises(SettingError, match="batch_size = auto: it is not found automatically"):
        made.create_from_arg_string(f"ckpt_path={path}", {"batch_size": "auto"})
