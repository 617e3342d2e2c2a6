"""Sampling: what is drawn from, the window it is predicted from, text as it comes."""

import math

import pytest
import torch

from datamodules import Bytes
from helpers.small_models import ARCHITECTURES, build
from llp.errors import SettingError
from llp.generation.continuation import TextStream, generate, stream_text
from llp.generation.sampling import Sampling

LOGITS = torch.tensor([0.5, 0.1, 0.3, 0.1]).log()


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.5, 0.1, 0.3, 0.1]),
        ({"temperature": 0}, [1, 0, 0, 0]),
        ({"temperature": 0.5}, [25 / 36, 1 / 36, 9 / 36, 1 / 36]),
        ({"top_k": 2}, [5 / 8, 0, 3 / 8, 0]),
        ({"top_k": 1}, [1, 0, 0, 0]),
        ({"top_p": 0.79}, [5 / 8, 0, 3 / 8, 0]),
        ({"top_p": 0.4}, [1, 0, 0, 0]),
        ({"top_p": 0.5001}, [5 / 8, 0, 3 / 8, 0]),
        ({"top_k": 100}, [0.5, 0.1, 0.3, 0.1]),
        ({"top_k": 3}, [5 / 9, 1 / 9, 3 / 9, 0]),  # of equally likely tokens the first ones
        ({"top_p": 0.85}, [5 / 9, 1 / 9, 3 / 9, 0]),
        ({"top_k": 3, "top_p": 0.85, "temperature": 0.5}, [25 / 34, 0, 9 / 34, 0]),
    ],
    ids=str,
)
def test_probabilities(settings, expected):
    probabilities = Sampling(**settings).probabilities(LOGITS)
    torch.testing.assert_close(probabilities, torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize("logits", [LOGITS, 1e-3 * LOGITS, 1e30 * LOGITS, LOGITS - 1e4], ids=str)
@pytest.mark.parametrize("temperature", [1e-10, 1e-20, 1e-37, 1e-38, 1e-39, 1e-42, 1e-300, 5e-324])
def test_next_to_no_temperature_is_none(logits, temperature):
    assert Sampling(temperature).probabilities(logits).tolist() == [1, 0, 0, 0]


def test_draws_follow_the_probabilities_and_the_seed():
    sampling = Sampling(seed=1)
    draws = [sampling.draw(LOGITS) for _ in range(4000)]
    assert torch.bincount(torch.tensor(draws)).div(4000).tolist() == pytest.approx([0.5, 0.1, 0.3, 0.1], abs=0.03)
    again = Sampling(seed=1)
    assert [again.draw(LOGITS) for _ in range(50)] == draws[:50]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": math.nan}, "temperature"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_p": math.nan}, "top_p"),
        ({"seed": 2**64}, "seed"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(SettingError, match=message):
        Sampling(**settings)


class Recorder(Sampling):
    """Draws, and keeps the distributions that it has drawn from."""

    def __init__(self, **settings):
        super().__init__(**settings)
        self.seen = []

    def draw(self, logits):
        self.seen.append(logits.double().log_softmax(-1))
        return super().draw(logits)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_text_is_drawn_with_the_probabilities_with_which_it_is_scored(name):
    """Those of scoring windows, computed from scratch, of a text as long as windows are full."""
    model = build(name)
    window_len, stride = model.geometry.scoring_window(13)
    sampling, prompt = Recorder(seed=3), [1, 2, 3]
    n_drawn = 6 * stride - len(prompt)
    drawn = [token for _, token in generate(model, [prompt], n_drawn, (window_len, stride), [sampling])]
    text = torch.tensor([[*prompt, *drawn]])
    for stop in range(stride, 6 * stride + 1, stride):
        with torch.no_grad():
            scored = model(text[:, max(0, stop - window_len) : stop])[0, -stride:].log_softmax(-1)
        for place in range(max(stop - stride, 2), min(stop, 6 * stride - 1)):
            from_scoring = scored[place - (stop - stride)]
            torch.testing.assert_close(sampling.seen[place - 2], from_scoring, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["LLP", "Transformer", "CompressedAttention"])
def test_texts_with_one_prompt_are_the_same_alone_and_together(name):
    """They end before the same token at different positions: the cache that they share loses one after the other."""
    model = build(name)
    window, prompts = model.geometry.scoring_window(13), [[1, 2, 3], [1, 4], [1, 2, 3], [1, 2, 3], [1, 4]]

    def texts(prompts, numbers):
        drawn, samplings = [[] for _ in prompts], [Sampling(seed=number) for number in numbers]
        for number, token in generate(model, prompts, 40, window, samplings, 3):
            drawn[number].append(token)
        return drawn

    alone = [texts([prompt], [number])[0] for number, prompt in enumerate(prompts)]
    assert texts(prompts, range(5)) == alone
    assert len({*map(len, alone)}) >= 3
    assert not any(3 in text for text in alone)


def test_text_comes_character_by_character():
    tokenizer = Bytes()
    tokens = list("a€b😀".encode())
    pieces = [*stream_text(TextStream(tokenizer.decode, list(b"so ")), tokens)]
    assert [piece for piece in pieces if piece] == ["a", "€", "b", "😀"]
    assert len(pieces) == len(tokens) + 1
    assert "".join(stream_text(TextStream(tokenizer.decode, []), [*b"x", 0xE2])) == "x\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("text", "stop", "pieces"),
    [
        ("abcd", ["bd"], ["a", "", "bc", "d", ""]),  # what begins like the stop string waits
        ("aabc", ["aab"], ["", "", "", ""]),
        ("aaab", ["aab"], ["", "", "a", "", ""]),
        ("xabz", ["abc", "b"], ["x", "", "a", ""]),
        ("xab", ["abc"], ["x", "", "", "ab"]),  # it ends without
        ("a€b", ["€"], ["a", "", "", "", ""]),
        ("abc", [], ["a", "b", "c", ""]),
    ],
)
def test_a_text_ends_before_a_stop_string(text, stop, pieces):
    assert list(stream_text(TextStream(Bytes().decode, list(b"ab"), stop), text.encode())) == pieces


def test_a_long_text_is_not_decoded_anew_for_each_token():
    seen = []

    def decode(tokens):  # a tokenizer that drops the space at a beginning, as SentencePiece does
        seen.append(len(tokens))
        return "".join(("", " a", " b")[token] for token in tokens).removeprefix(" ")

    stream = TextStream(decode, [0, 1])
    drawn = [1, 2, 0, 2, 1] * 50
    assert "".join(map(stream.add, drawn)) + stream.rest() == decode([0, 1, *drawn])[1:]
    assert max(seen[:-1]) <= 4
