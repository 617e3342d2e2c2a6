"""Scores of tasks: right for models known by hand, however the split is cut."""

import math
from collections import Counter
from itertools import permutations
from types import SimpleNamespace

import pytest
import scipy.stats
import torch

from datamodules import AssociativeRecall, MirroredCopy
from helpers.prepared import attach
from helpers.small_models import build
from helpers.tasks import TASKS, make
from llp.errors import SettingError
from llp.evaluation.report import require_chance
from llp.scoring.label_metric import LabelBatch, LabelScore


def stub(logits):
    """A model of unlimited reach that returns `logits(tokens, positions)`."""
    return SimpleNamespace(decoder=logits, geometry=build("Transformer").geometry)


def scored(data, model, **trainer):
    loader = attach(data, model, **trainer).test_dataloader()
    score = loader.score()
    with torch.no_grad():
        for batch in loader:
            score.update(model.decoder(batch.inputs, batch.positions), batch)
    return score


def oracle(data):
    """Reads the window with the eyes of the task's definition, from the tokens alone."""

    def logits(tokens, places):
        out = torch.full((*places.shape, data.vocab_size), -40.0)
        for row in range(len(tokens)):
            text = tokens[row].tolist()
            for column, place in enumerate(places[row].tolist()):
                if isinstance(data, AssociativeRecall):
                    answer = text[text.index(text[place]) + 1]  # behind the key's first occurrence
                else:
                    half = (len(text) - 2) // 2
                    answer = text[2 * half - place]
                out[row, column, answer] = 0.0
        return out

    return stub(logits)


@pytest.mark.parametrize("task", TASKS)
def test_a_perfect_model(task):
    data = make(task)
    score = scored(data, oracle(data))
    n_labels = 10 * data.labels_per_window
    assert score.scored() == (n_labels, n_labels)
    assert score.total() == {"loss": pytest.approx(0, abs=1e-12), "accuracy": 1.0}
    for row in score.distances(2):
        assert row["correct"] == row["labels"] > 0


def test_counts_by_hand():
    """Two windows of two labels: nats of the label, whether it is the likeliest, in the bin of its distance."""
    p = torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]], [[0.2, 0.6, 0.2], [0.3, 0.3, 0.4]]], dtype=torch.float64)
    labels, distances = torch.tensor([[0, 1], [1, 2]]), torch.tensor([[2, 6], [3, 8]])
    score = LabelScore(window_len=8, n_labels=5)
    beyond = torch.tensor([[False, True], [False, True]])
    score.update(p.log(), LabelBatch(labels, labels, labels, distances, beyond))
    assert score.scored() == (4, 5)
    nats = [-math.log(q) for q in (0.5, 0.2, 0.6, 0.4)]
    row = score.row()
    assert (row["labels"], row["correct"]) == (4, 3)
    assert row["nats"] == pytest.approx(sum(nats), rel=1e-12)
    assert row["loss"] == pytest.approx(sum(nats) / 4, rel=1e-12)
    assert row["accuracy"] == 3 / 4
    assert score.beyond_reach() == {"labels": 2, "correct": 1}
    first, second, third = score.distances(3)  # 1-3, 4-6, 7-9
    assert first == {"first": 1, "last": 3, "labels": 2, "correct": 2, "nats": pytest.approx(nats[0] + nats[2])}
    assert second == {"first": 4, "last": 6, "labels": 1, "correct": 0, "nats": pytest.approx(nats[1])}
    assert third == {"first": 7, "last": 9, "labels": 1, "correct": 1, "nats": pytest.approx(nats[3])}
    assert [row["first"] for row in score.distances(2)] == [1, 3, 5, 7]
    empty = LabelScore(8, 5)
    assert empty.distances(3) == []
    assert math.isnan(empty.total()["loss"])


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", ["LLP", "PerceiverAR"])
@torch.inference_mode()
def test_batches_and_ranks_change_nothing(task, name):
    """Against one window at a time and all of its logits."""
    settings = {"label_len": 5, **({"n_pairs": 2} if task is AssociativeRecall else {})}
    model = build(name)
    data = make(task, **settings)
    labels = correct = nats = 0.0
    for number in range(10):
        tokens, places, sources = map(torch.from_numpy, data.example("test", number))
        log_p = model(tokens[None])[0].log_softmax(dim=1)  # (T, V)
        for place, source in zip(places.tolist(), sources.tolist(), strict=True):
            row = log_p[place - 16 + len(log_p)]
            labels, nats = labels + 1, nats - float(row[tokens[source]])
            correct += bool(row.argmax() == tokens[source])
    row = scored(data, model).row()
    assert (row["labels"], row["correct"]) == (labels, correct)
    assert row["nats"] == pytest.approx(nats, rel=1e-12)
    shares = [scored(make(task, batch_size=3, **settings), model, global_rank=rank, world_size=3) for rank in range(3)]
    assert sum(share.row()["labels"] for share in shares) == labels
    assert sum(share.row()["nats"] for share in shares) == pytest.approx(nats, rel=1e-12)


def test_knowledge_beyond_reach_is_refused():
    """By the exact binomial tail: only what chance brings about less than once in a million times, and all of that."""

    for n, candidates in ((50, 4), (1000, 57), (20_000, 249)):
        first = next(k for k in range(n + 1) if is_refused(n, k, candidates))
        assert 1e-9 < scipy.stats.binom.sf(first - 1, n, 1 / candidates) < 1e-6
        assert all(is_refused(n, k, candidates) for k in (first + 1, n))
    assert not is_refused(0, 0, 5)
    assert not is_refused(5, 5, 2)
    assert is_refused(30, 30, 2)
    assert not is_refused(30, 30, 1)
    with pytest.raises(SettingError, match=r"model = its reach: 1,200 of 9,000 labels whose source lies beyond"):
        require_chance(9000, 1200, candidates=10)


def is_refused(n, correct, candidates):
    try:
        require_chance(n, correct, candidates)
    except SettingError:
        return True
    return False


def test_so_many_candidates_are_left_where_all_else_is_known():
    copy = MirroredCopy(vocab_size=8, window_len=8)  # three of six symbols
    left = Counter(half[1:] for half in permutations(range(2, 8), 3))
    assert set(left.values()) == {copy.n_candidates} == {4}
    recall = AssociativeRecall(vocab_size=13, n_pairs=3, window_len=12)  # three values, from 6 to 12
    left = Counter(values[1:] for values in permutations(range(6, 13), 3))
    assert set(left.values()) == {recall.n_candidates} == {5}
