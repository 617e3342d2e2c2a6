"""Batches against the stream that they are cut from: training windows, scoring windows, and what is said of both."""

from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from datamodules.loaders import (
    ScoringLoader,
    TextWindows,
    TrainingLoader,
    TrainingOrder,
    TrainingProgress,
    share_of_rank,
)
from helpers.corpus import Given
from helpers.prepared import attach, prepared
from helpers.small_models import build
from llp.scoring.windows import scoring_batches

STREAM = np.arange(100, 150)


def training_loader(stride=7, window_len=7, batch_size=3, n_batches=5, rank=0, world_size=1, samples=0, seed=5):
    order = TrainingOrder(len(STREAM), stride, seed)
    windows = TextWindows(SimpleNamespace(tokens=STREAM), order, window_len, burn_in=0)
    return TrainingLoader(windows, TrainingProgress(samples), batch_size, n_batches, rank, world_size)


def test_training_windows_are_pieces_of_the_circle():
    """Each has a token behind every input, over the end of the stream as well, and all types are the embedding's."""
    loader = training_loader(stride=1, window_len=20, batch_size=5, n_batches=10)  # an epoch: a window at every place
    starts = []
    for number, (inputs, targets) in enumerate(loader):
        assert loader.progress.samples == 5 * (number + 1)
        assert inputs.shape == targets.shape == (5, 20)
        assert inputs.dtype == targets.dtype == torch.int64
        for row, following in zip(inputs.tolist(), targets.tolist(), strict=True):
            first = row[0] - 100
            assert row == [100 + (first + i) % 50 for i in range(20)]
            assert following == [100 + (first + i + 1) % 50 for i in range(20)]
            starts.append(first)
    assert sorted(starts) == list(range(50))  # those that meet the end exactly among them
    assert starts == [loader.make_batch.order.start(sample) for sample in range(50)]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_take_the_samples_in_turn(world_size):
    """Rank r takes r, r + world_size, ... of each step's samples; what is counted is all ranks'."""
    taken = []
    for rank in range(world_size):
        loader = training_loader(rank=rank, world_size=world_size, batch_size=2, samples=4)
        for step, (inputs, _) in enumerate(loader):
            first = 4 + step * 2 * world_size
            samples = range(first + rank, first + 2 * world_size, world_size)
            assert (inputs[:, 0] - 100).tolist() == [loader.make_batch.order.start(sample) for sample in samples]
            taken += samples
            assert loader.progress.samples == first + 2 * world_size
    assert sorted(taken) == list(range(4, 4 + 5 * 2 * world_size))


def test_burn_in_begins_with_the_document():
    """Four tokens before each window of ten, of its own document alone: documents begin at 0, 3 and 24 of 50."""
    order = TrainingOrder(len(STREAM), 10, seed=1, is_circle=False)
    documents = [SimpleNamespace(start=start) for start in (24, 3, 0)]
    stream = SimpleNamespace(
        tokens=STREAM, document_at=lambda place: next(document for document in documents if document.start <= place)
    )
    loader = TrainingLoader(TextWindows(stream, order, 10, burn_in=4), TrainingProgress(), 1, 5, 0, 1)
    before = {}
    for inputs, targets, *places in loader:
        assert inputs.shape == (1, 14)
        first = int(inputs[0, 0]) - 100
        assert inputs[0].tolist() == [100 + (first + i) % 50 for i in range(14)]
        start = int(targets[0, 0]) - 101
        assert targets[0].tolist() == [100 + (start + i + 1) % 50 for i in range(10)]  # after the end its beginning
        if places:
            assert (inputs.gather(1, places[0]) - 100).tolist() == [[start + i for i in range(10)]]
        else:
            assert (inputs[0, 4:] - 100).tolist() == [start + i for i in range(10)]
        before[start] = start - first
    assert before == {0: 0, 10: 4, 20: 4, 30: 4, 40: 4}
    near = TextWindows(stream, order, 2, burn_in=4)
    assert [near._n_before(start) for start in (2, 3, 4, 7, 23, 24, 27, 28, 49)] == [2, 0, 1, 4, 4, 0, 3, 4, 4]


DOCUMENTS = [
    SimpleNamespace(start=0, tokens=20),
    SimpleNamespace(start=21, tokens=0),
    SimpleNamespace(start=22, tokens=7),
]
"""Three documents in a stream of 30, each behind its start token."""


def scoring_loader(window_len=16, stride=4, batch_size=3, rank=0, world_size=1):
    tokens = np.arange(200, 230, dtype=np.uint16)
    batches = scoring_batches([document.tokens for document in DOCUMENTS], window_len, stride, batch_size)
    file = SimpleNamespace(tokens=tokens, documents=DOCUMENTS, starts=[0, 21, 22])
    protocol = {"window_len": window_len, "stride": stride}
    share = share_of_rank(batches, rank, world_size)
    return ScoringLoader(file, share, "test", protocol, lambda split: [f"unigram of {split}"])


@pytest.mark.parametrize("world_size", [1, 2])
def test_each_scored_token_stands_at_its_place(world_size):
    scored = {}
    for rank in range(world_size):
        loader = scoring_loader(rank=rank, world_size=world_size)
        assert len(loader) == len(list(loader))
        for number, batch in enumerate(loader):
            assert batch.inputs.dtype == batch.targets.dtype == torch.int64
            places = loader.positions(number)
            assert len(places) == len(batch.inputs) == len(batch.documents)
            for place, inputs, targets, document in zip(places, *batch, strict=True):
                origin = DOCUMENTS[document].start
                text = [200 + origin + i for i in range(DOCUMENTS[document].tokens + 1)]  # with its start token
                first = int(inputs[0]) - text[0]
                assert inputs.tolist() == text[first : first + len(inputs)]
                behind = text[first + 1 : first + 1 + len(inputs)]  # the token after each input
                assert targets.tolist() == behind[len(behind) - len(targets) :]
                for offset, token in enumerate(targets.tolist()):
                    assert place + offset not in scored
                    scored[place + offset] = token
    # All tokens of the text, in its order, without the start tokens 200, 221 and 222.
    assert [scored[place] for place in range(27)] == [*range(201, 221), *range(223, 230)]
    assert len(scored) == 27


def test_shapes_of_windows_are_those_of_all_ranks():
    """Length, scored positions, whether it is its document's first: the second may begin at the start as well."""
    expected = Counter({
        (4, 4, True): 2, (8, 4, False): 1, (12, 4, False): 1, (16, 4, False): 2,  # 20 tokens, then of 7: 4
        (7, 3, False): 1,
    })  # fmt: skip
    for rank in range(2):
        assert scoring_loader(rank=rank, world_size=2).window_shapes == expected
    assert scoring_loader().unigram_nats() == ["unigram of test"]


# The data module


TEXT = {
    "train": {"a": "x" * 40, "b": "y" * 19},
    "validation": {"c": "one two three"},
    "test": {"d": "four", "e": "five"},
}


@pytest.fixture
def data(tmp_path):
    def make(max_steps=10, accumulated=1, world_size=1, **settings):
        data = prepared(Given(TEXT, cache_dir=str(tmp_path), **settings))
        trainer = {"max_steps": max_steps, "accumulate_grad_batches": accumulated, "world_size": world_size}
        return attach(data, build("Transformer"), **trainer)

    return make


def test_places_of_samples_are_named(data):
    """Sample by sample, the document that a window begins in and where in it: its start token is token 0."""
    module = data(window_len=6, train_stride=1, batch_size=61, seed=3)
    next(iter(module.train_dataloader()))
    order = TrainingOrder(61, 1, 3)
    lines = module.describe_samples(61)
    for sample, line in enumerate(lines):
        start = order.start(sample)
        within, name = (start, "a") if start < 41 else (start - 41, "b")
        assert line == f"sample {sample}: 6 tokens from token {within} of {name}"
    assert module.describe_samples(2) == lines[-2:]
    assert {line.partition("from ")[2] for line in lines} >= {"token 0 of a", "token 40 of a", "token 0 of b"}
