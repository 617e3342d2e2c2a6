"""Drawn examples against the definition of their task; which comes when, on which rank, after a resume."""

import numpy as np
import pytest
import torch

from datamodules import AssociativeRecall, MirroredCopy
from datamodules.synthetic import stacked
from helpers.prepared import attach
from helpers.small_models import build
from helpers.tasks import TASKS, make
from llp.errors import SettingError


def drawn(data, n, split="train"):
    return [data.example(split, number) for number in range(n)]


# Associative recall


@pytest.mark.parametrize(
    ("settings", "first_query"),
    [
        ({}, 16),
        ({"window_len": 33, "label_len": 17}, 16),
        ({"label_len": 20}, 44),
        ({"window_len": 65, "label_len": 20}, 46),  # from 45 on, and at even positions
        ({"window_len": 32}, 16),  # every place is taken
        ({"vocab_size": 18, "filler": "zero"}, 16),  # every key is taken
    ],
)
def test_recall_by_its_definition(settings, first_query):
    data = AssociativeRecall(**{"vocab_size": 101, "n_pairs": 8, "window_len": 64, "filler": "random", **settings})
    n, v = data.window_len, data.vocab_size
    for tokens, positions, sources in drawn(data, 50):
        assert tokens.dtype == positions.dtype == sources.dtype == np.int64
        tokens = tokens.tolist()
        assert len(tokens) == n
        keys, values = tokens[0:16:2], tokens[1:16:2]
        assert len(set(keys)) == len(set(values)) == len(positions) == data.labels_per_window == 8
        assert all(1 <= key < v // 2 for key in keys)
        assert all(v // 2 <= value < v for value in values)
        answers = dict(zip(keys, values, strict=True))
        queries = [tokens[place] for place in positions]
        assert sorted(queries) == sorted(keys)  # each once
        assert [tokens[source] for source in sources] == [answers[key] for key in queries]
        assert all(first_query <= place < n and place % 2 == 0 for place in positions)
        assert data.first_position == first_query
        filler = [token for place, token in enumerate(tokens[16:], start=16) if place not in positions]
        assert not set(filler) & set(keys)
        assert all(0 <= token < v for token in filler)
        assert data.filler == "random" or set(filler) <= {0}
    assert data.n_answers == v - v // 2
    assert data.n_candidates == v - v // 2 - 7


# Mirrored copy


def test_the_copy_by_its_definition():
    data = MirroredCopy(vocab_size=40, window_len=20)
    symbols = set()
    for tokens, positions, sources in drawn(data, 50):
        tokens = tokens.tolist()
        half, copy = tokens[1:10], tokens[10:19]
        assert (len(tokens), tokens[0], tokens[-1]) == (20, 0, 1)
        assert copy == half[::-1]
        assert len(set(half)) == 9
        symbols |= set(half)
        # The label at a place is the token that comes next; the sources are those of the first half.
        assert [tokens[place + 1] for place in positions] == copy == [tokens[source] for source in sources]
        assert all(1 <= source <= 9 for source in sources)
        assert (positions + 1 - sources).tolist() == list(range(1, 18, 2))  # every odd distance once
    assert symbols == set(range(2, 40))
    assert (data.n_answers, data.labels_per_window, data.first_position) == (38, 9, 9)
    assert data.n_candidates == 38 - 8


# What they share


@pytest.mark.parametrize("task", TASKS)
def test_an_example_is_a_function_of_seed_split_and_number(task):
    def content(seed, split, number):
        return tuple(part.tobytes() for part in make(task, seed=seed).example(split, number))

    keys = [
        (seed, split, number) for seed in (0, 1) for split in ("train", "validation", "test") for number in range(4)
    ]
    contents = {key: content(*key) for key in keys}
    assert contents == {key: content(*key) for key in reversed(keys)}
    fresh = [value for (seed, split, _), value in contents.items() if split == "train" or seed == 0]
    assert len(set(fresh)) == len(fresh) == 16
    for split in ("validation", "test"):  # the same for runs of all seeds
        assert all(contents[0, split, number] == contents[1, split, number] for number in range(4))


@pytest.mark.parametrize("task", TASKS)
def test_ranks_share_one_order_and_a_resumed_run_goes_on(task):
    def batches(data, rank=0, world_size=1, batch_size=4):
        data.batch_size = batch_size
        return [*attach(data, max_steps=2, accumulate_grad_batches=3, global_rank=rank, world_size=world_size)
                .train_dataloader()]  # fmt: skip

    single = batches(make(task))
    assert len(single) == 6
    rows = [row for batch in single for row in zip(*batch, strict=True)]
    examples = drawn(make(task), 24)
    for (inputs, labels, positions), example in zip(rows, examples, strict=True):
        assert inputs.tolist() == example.tokens.tolist()
        assert positions.tolist() == example.positions.tolist()
        assert labels.tolist() == example.tokens[example.sources].tolist()
    shares = [batches(make(task), rank, 2, batch_size=2) for rank in range(2)]
    for batch, *pair in zip(single, *shares, strict=True):  # rank r takes the samples r, r + 2, ...
        for whole, first, second in zip(batch, *pair, strict=True):
            assert torch.equal(torch.stack((first, second), dim=1).flatten(0, 1), whole)

    data = make(task)
    loader = attach(data, max_steps=6).train_dataloader()
    for number, _ in enumerate(loader):
        if number == 1:
            break
    assert data.state_dict() == {"samples_taken": 8, "batches_taken": 2}
    assert data.describe_samples(2) == [f"sample {number} of {task.name}" for number in (6, 7)]
    resumed = make(task)
    resumed.load_state_dict(data.state_dict())
    (inputs, _, _), *_ = attach(resumed, max_steps=6).train_dataloader()
    assert torch.equal(inputs, single[2][0])


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_each_scored_example_comes_once_on_some_rank(task, world_size):
    """Ten examples in batches of four; every rank has as many batches, those too many without a label."""
    loaders = [attach(make(task), global_rank=rank, world_size=world_size).test_dataloader()
               for rank in range(world_size)]  # fmt: skip
    assert len({len(loader) for loader in loaders}) == 1
    batches = [batch for loader in loaders for batch in loader]
    scored = [batch for batch in batches if batch.labels.shape[1]]
    assert len(batches) - len(scored) == -3 % world_size
    rows = torch.cat([torch.cat(batch[:4], dim=1) for batch in scored])
    expected = torch.cat(stacked(drawn(make(task), 10, "test")), dim=1)
    assert sorted(rows.tolist()) == sorted(expected.tolist())
    for loader in loaders:
        k = loader.protocol["labels_per_window"]
        assert loader.window_shapes == {(16, k, True): 10}
        assert loader.score().n_labels == 10 * k


def test_limits_and_fingerprints():
    data = attach(make(AssociativeRecall), limit_val_batches=1)
    assert [len(batch.inputs) for batch in data.val_dataloader()] == [4]
    fingerprint = data.val_dataloader().protocol["data_fingerprint"]
    assert fingerprint == make(AssociativeRecall, seed=3, batch_size=5).fingerprint("validation")
    others = [make(AssociativeRecall).fingerprint("test"), make(MirroredCopy).fingerprint("validation")]
    others += [make(AssociativeRecall, **{name: value}).fingerprint("validation")
               for name, value in (("n_validation", 7), ("filler", "random"), ("label_len", 8))]  # fmt: skip
    assert len({fingerprint, *others}) == 6


@pytest.mark.parametrize(
    ("task", "settings", "message"),
    [
        (AssociativeRecall, {"n_pairs": 5}, "n_pairs = 5: set it to 1 or more; window_len / 4 = 4 and vocab_size / 2"),
        (AssociativeRecall, {"label_len": 5}, "label_len = 5: n_pairs = 3 .* set it to 6 or more"),
        (AssociativeRecall, {"batch_size": 0}, "data.init_args.batch_size = 0"),
        (AssociativeRecall, {"n_test": 0}, "data.init_args.n_test = 0"),
        (AssociativeRecall, {"seed": -1}, "seed_everything = -1"),
        (MirroredCopy, {"window_len": 15}, "data.init_args.window_len = 15: .* set it to an even number, 4 or more"),
        (MirroredCopy, {"vocab_size": 15}, "vocab_size = 15: .* at least 14 different symbols; set it to 16 or more"),
        (MirroredCopy, {"label_len": 2}, "label_len = 2: .* set it to 3 or more"),
    ],
)
def test_settings_that_make_no_task(task, settings, message):
    with pytest.raises(SettingError, match=message):
        make(task, **settings)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", ["LLP", "Transformer", "PerceiverAR", "DoubleAttention"])
def test_labels_without_a_loss_are_refused_before_anything_is_done(task, name):
    """The small models have five latents: labels must lie in the last five positions."""
    settings = {"n_pairs": 1} if task is AssociativeRecall else {}
    attach(make(task, label_len=5, **settings), build(name)).prepare_data()
    data = attach(make(task, **settings), build(name))
    if name in ("LLP", "Transformer"):
        data.prepare_data()
        return
    message = "label_len = None: the model has a loss only at the last 5 of 16 positions, .* set it to 5 or less"
    with pytest.raises(SettingError, match=message):
        data.prepare_data()
    attach(make(task, label_len=5, window_len=6, **({"vocab_size": 19} | settings)), build(name)).prepare_data()


def test_fresh_examples_need_a_number_of_steps():
    with pytest.raises(SettingError, match=r"trainer.max_steps = -1: there is no end to new examples"):
        attach(make(AssociativeRecall), max_steps=-1).train_dataloader()


def test_there_is_no_text_to_predict():
    with pytest.raises(SettingError, match="data = MirroredCopy: it has no text"):
        attach(make(MirroredCopy)).predict_dataloader()
