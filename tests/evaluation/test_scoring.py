"""Scores: independent of how the text is cut into batches and windows, and right for models known by hand."""

import math

import pytest
import torch

from helpers.corpus import document
from helpers.small_models import SIZES, build
from llp.scoring.metric import Score, ScoringBatch, metrics
from llp.scoring.windows import scoring_batches


def test_metrics():
    result = metrics(nats=20.0, tokens=10, words=4, n_bytes=40)
    assert result["loss"] == 2.0
    assert result["perplexity"] == pytest.approx(math.e**2)
    assert result["word_perplexity"] == pytest.approx(math.e**5)
    assert result["bits_per_byte"] == pytest.approx(0.5 / math.log(2))
    # perplexity per word is perplexity per token to the power tokens / words
    assert result["word_perplexity"] == pytest.approx(result["perplexity"] ** (10 / 4))
    assert metrics(1e9, 10, 4, 40)["word_perplexity"] == math.inf


def score(model, texts, window_len, stride, batch_size):
    """Score token rows (each with its start token) as a scoring loader would."""
    documents = [document(str(i), len(text) - 1, 5, 20) for i, text in enumerate(texts)]
    metric = Score(documents)
    for batch in scoring_batches([d.tokens for d in documents], window_len, stride, batch_size):
        rows = torch.stack([texts[w.document][w.start : w.stop + 1] for w in batch])
        targets = rows[:, rows.shape[1] - batch[0].n_scored :]
        with torch.no_grad():
            scored = ScoringBatch(rows[:, :-1], targets, torch.tensor([w.document for w in batch]))
            metric.update(model.decoder.loss(scored.inputs, scored.targets).each, scored)
    return metric.rows()


TEXTS = [torch.randint(SIZES["vocab_size"], (n + 1,), generator=torch.Generator().manual_seed(n)) for n in (131, 7, 64)]


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("LLP", {}, (24, 12)),
        ("LLP", {"look_back": 0}, (4, 4)),
        ("LLP", {"look_back": 2, "n_layers": 2}, (32, 16)),
        ("SlidingWindow", {}, (24, 12)),
        ("ShiftedSegments", {}, (24, 12)),
        ("ShiftedSegments", {"n_layers": 2}, (12, 6)),
        ("Transformer", {}, None),
        ("LLP", {"dense_every": 3}, None),
    ],
)
def test_windows_equal_the_single_pass(name, settings, expected):
    """Windows that hold the reach: their total is that of one pass over the whole text."""
    model = build(name, **settings)
    with torch.no_grad():
        passes = [model.decoder.loss(text[None, :-1], text[None, 1:]).each.sum().item() for text in TEXTS]
    window_len, stride = model.geometry.scoring_window(train_window_len=16) if expected else (200, 150)
    assert (window_len, stride) == (expected or (200, 150))
    rows = score(model, TEXTS, window_len, stride, batch_size=3)
    assert rows[0]["tokens"] == 131 + 7 + 64
    assert rows[0]["nats"] == pytest.approx(sum(passes), rel=1e-12)
    for row, total in zip(rows[1:], passes, strict=True):
        assert row["nats"] == pytest.approx(total, rel=1e-12)


def test_a_uniform_model_scores_the_size_of_its_vocabulary():
    model = build("Transformer")
    with torch.no_grad():
        model.decoder.head.weight.zero_()
        model.decoder.head.bias.zero_()
    assert score(model, TEXTS, 16, 8, 4)[0]["perplexity"] == pytest.approx(19, rel=1e-12)
