"""Sampling: what is drawn from, the window it is predicted from, text as it comes."""

import pytest
import torch

from datamodules import Bytes
from helpers.small_models import ARCHITECTURES, build
from llp.errors import SettingError
from llp.generation.continuation import generate, stream_text
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
    ],
    ids=str,
)
def test_probabilities(settings, expected):
    probabilities = Sampling(**settings).probabilities(LOGITS)
    torch.testing.assert_close(probabilities, torch.tensor(expected, dtype=torch.float32))


def test_draws_follow_the_probabilities_and_the_seed():
    sampling = Sampling(seed=1)
    draws = [sampling.draw(LOGITS) for _ in range(4000)]
    assert torch.bincount(torch.tensor(draws)).div(4000).tolist() == pytest.approx([0.5, 0.1, 0.3, 0.1], abs=0.03)
    again = Sampling(seed=1)
    assert [again.draw(LOGITS) for _ in range(50)] == draws[:50]


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"temperature": -1}, "temperature"), ({"top_k": 0}, "top_k"), ({"top_p": 0}, "top_p"), ({"top_p": 1.5}, "top_p")],
)
def test_bad_settings(settings, message):
    with pytest.raises(SettingError, match=message):
        Sampling(**settings)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_each_token_is_the_likeliest_in_the_window_that_scores_its_place(name):
    model = build(name)
    window_len, stride = model.scoring_window(13)
    with torch.no_grad():
        drawn = list(generate(model, [1, 2, 3], 40, window_len, stride, Sampling(temperature=0)))
        tokens = [1, 2, 3, *drawn]
        assert len(drawn) == 40
        for place in (2, 3, 11, 12, 13, 25, 40):  # tokens[place + 1] was drawn at `place`
            start = max(0, (place // stride + 1) * stride - window_len)
            logits = model(torch.tensor([tokens[start : place + 1]]))[0, -1]
            assert tokens[place + 1] == logits.argmax()


def test_llp_draws_from_its_whole_reach():
    """However long the text: the same token as from one pass over all of it."""
    model = build("LLP")
    window = model.scoring_window(8)
    with torch.no_grad():
        tokens = [1, *generate(model, [1], 70, *window, Sampling(temperature=0))]
        assert model(torch.tensor([tokens[:-1]]))[0].argmax(-1).tolist() == tokens[1:]


def test_text_comes_character_by_character():
    tokenizer = Bytes()
    tokens = list("a€b😀".encode())
    pieces = [piece for piece in stream_text(tokenizer.decode, list(b"so "), tokens) if piece]
    assert pieces == ["a", "€", "b", "😀"]
    unfinished = list(stream_text(tokenizer.decode, [], [*b"x", 0xE2]))
    assert "".join(unfinished) == "x\N{REPLACEMENT CHARACTER}"
