"""Recall tokens and the slices of a loss: by hand, and against the definition token by token."""

import random
from itertools import accumulate, chain
from types import SimpleNamespace

import numpy as np
import pytest

from helpers.slices_by_definition import slices_by_definition
from llp.evaluation.recall import last_occurrences, loss_slices


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Position i holds character i and has the next one as its target.
        (b"abcabdab", [-1, -1, -1, 0, -1, -1, 3]),
        (b"aaaa", [-1, 0, 1]),  # each next to the one before: the nearest one counts
        (b"abba", [-1, -1, -1]),  # ba is not ab
        (b"a", []),
        ([1, 0, 1 << 8], [-1, -1]),
        ([1 << 31, 5, 0, 5, 1 << 31], [-1, -1, -1, -1]),  # large ids are not mixed up
        ([1 << 31, 1, 1 << 31, 1], [-1, -1, 0]),
    ],
)
def test_a_bigram_is_found_where_it_last_occurred(text, expected):
    assert last_occurrences(np.array([*text], np.uint32)).tolist() == expected


# Slices


def written(documents, losses, window_len, stride):
    """Losses, which of them count, and a loader of these documents, each its start token and its tokens."""
    nats = [loss for document in losses for loss in document]
    starts = [0, *accumulate(map(len, documents))][:-1]
    loader = SimpleNamespace(
        documents=[
            SimpleNamespace(start=start, tokens=len(document) - 1)
            for start, document in zip(starts, documents, strict=True)
        ],
        file=SimpleNamespace(tokens=np.array([*chain(*documents)], np.uint16)),
        protocol={"window_len": window_len, "stride": stride},
    )
    return np.array([loss or 0 for loss in nats], np.float32), np.array([loss is not None for loss in nats]), loader


def test_slices_by_hand():
    """Windows of 4 inputs that score 2: inputs 0 .. 1, 0 .. 3, 2 .. 5 and 4 .. 6. A loss tells whose it is."""
    document = [9, 1, 2, 1, 2, 1, 2, 2]  # the start token and seven more
    assert loss_slices(*written([document], [[1, 2, 4, 8, 16, 32, 64]], window_len=4, stride=2)) == {
        # Predicted from 1 2 3 4 3 4 3 tokens: the last three windows begin at 0, 2 and 4.
        "position": [
            {"first": 1, "last": 1, "tokens": 1, "nats": 1.0},
            {"first": 2, "last": 2, "tokens": 1, "nats": 2.0},
            {"first": 3, "last": 3, "tokens": 3, "nats": 4.0 + 16 + 64},
            {"first": 4, "last": 4, "tokens": 2, "nats": 8.0 + 32},
        ],
        # 1 2 at 3 and 4 repeats that at 1 and 2; 2 1 at 4 and 5 that at 2 and 3, where the window begins; 1 2 at 5 and
        # 6 that at 3 and 4. 2 2 is new.
        "recall": [{"first": 2, "last": 2, "tokens": 3, "nats": 8.0 + 16 + 32}],
        "other": {"tokens": 4, "nats": 1.0 + 2 + 4 + 64},
    }


def test_slices_by_definition():
    rng = random.Random(0)
    for _ in range(30):
        window_len = rng.choice([1, 2, 5, 12, 33, 70, 100])
        stride = rng.randint(1, window_len)
        documents = [[rng.randrange(5) for _ in range(rng.choice([1, 2, 9, 90]))] for _ in range(rng.randint(1, 6))]
        documents.append([0, 1, 2])  # not all are empty
        nats = [None, *(n / 64 for n in range(100))]  # sums are exact
        losses = [[rng.choice(nats) for _ in document[1:]] for document in documents]
        content = loss_slices(*written(documents, losses, window_len, stride))
        assert content == slices_by_definition(documents, losses, window_len, stride)
        scored = [loss for document in losses for loss in document if loss is not None]
        for entries in (content["position"], [*content["recall"], content["other"]]):
            assert sum(entry["tokens"] for entry in entries) == len(scored)
            assert sum(entry["nats"] for entry in entries) == sum(scored)
