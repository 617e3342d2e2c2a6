"""The training order and the scoring windows, by counting."""

import math

import pytest
import torch
from lightning.pytorch.trainer.connectors.data_connector import _parse_num_batches
from lightning.pytorch.trainer.states import RunningStage

from datamodules.loaders import TrainingOrder, share_of_rank
from helpers.prepared import attach, prepare
from helpers.small_models import build
from llp.errors import SettingError
from llp.scoring.windows import in_one_pass, scoring_batches, scoring_windows


def test_the_order_is_a_function_of_seed_and_sample():
    starts = [TrainingOrder(1000, 10, seed=1).start(sample) for sample in range(250)]
    order = TrainingOrder(1000, 10, seed=1)
    assert [order.start(sample) for sample in reversed(range(250))] == starts[::-1]
    assert {start % 10 for start in starts[:100]} != {start % 10 for start in starts[100:200]}  # another offset


@pytest.mark.parametrize("n_tokens", [0, 1, 5, 8, 9, 31, 64])
@pytest.mark.parametrize(("window_len", "stride"), [(8, 8), (8, 4), (8, 1), (16, 3), (1, 1)])
def test_each_position_is_scored_once_with_the_context_that_fits(n_tokens, window_len, stride):
    scored = []
    for window in scoring_windows(0, n_tokens, window_len, stride):
        positions = range(window.stop - window.n_scored, window.stop)
        assert window.stop - window.start <= window_len
        # as much context as the rule allows: to the document's start, or a full window up to the next multiple
        assert window.start == max(0, positions[0] + stride - window_len)
        scored += positions
    assert scored == list(range(n_tokens))


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_ranks_share_the_batches_and_run_equally_many(world_size):
    batches = scoring_batches([31, 0, 8, 50], window_len=8, stride=4, batch_size=3)
    for batch in batches:
        assert len(batch) <= 3
        assert len({(window.stop - window.start, window.n_scored) for window in batch}) == 1
    shares = [share_of_rank(batches, rank, world_size) for rank in range(world_size)]
    assert len({len(share) for share in shares}) == 1
    windows = [window for share in shares for batch in share for window in batch if window.n_scored]
    expected = [w for document, n in enumerate([31, 0, 8, 50]) for w in scoring_windows(document, n, 8, 4)]
    assert sorted(windows) == sorted(expected)


@pytest.mark.parametrize(("limit", "n_batches"), [(5, 5), (0.1, 4), (1.0, 49)])
def test_a_limited_score_is_that_of_the_same_windows_on_any_number_of_ranks(wikitext, tmp_path, limit, n_batches):
    """What each rank scores in as many batches as Lightning takes from it."""
    scored = {}
    for world_size in (1, 2, 3):
        scored[world_size] = []
        for rank in range(world_size):
            settings = {"batch_size": 4, "scoring_window_len": 24, "scoring_stride": 12}
            data = prepare(wikitext, tmp_path / "cache", **settings)
            attach(data, build("Transformer"), global_rank=rank, world_size=world_size, limit_test_batches=limit)
            loader = data.test_dataloader()
            taken = _parse_num_batches(RunningStage.TESTING, len(loader), data.trainer.limit_test_batches)
            assert taken == len(loader) == math.ceil(n_batches / world_size)
            scored[world_size] += [window for batch in loader.batches for window in batch if window.n_scored]
    everything = scoring_batches([document.tokens for document in loader.documents], 24, 12, batch_size=2)
    assert len(everything) == 49
    assert scored[1] == [window for batch in everything[:n_batches] for window in batch]
    assert sorted(scored[2]) == sorted(scored[3]) == sorted(scored[1])


def test_joined_windows_score_the_same_positions_once():
    for n_kept in (1, 4, 13):  # of all batches: a limited score
        batches = scoring_batches([31, 0, 8, 50], window_len=8, stride=4, batch_size=2)[:n_kept]
        joined = in_one_pass(batches, longest=20, n_positions=40)

        def positions(batches):
            windows = (window for batch in batches for window in batch)
            return sorted((w.document, place) for w in windows for place in range(w.stop - w.n_scored, w.stop))

        assert positions(joined) == positions(batches)
        starts = {window.start for batch in batches for window in batch}
        assert {window.start for batch in joined for window in batch} <= starts


@pytest.mark.parametrize(
    ("name", "settings", "is_joined"),
    [
        ("LLP", {}, True),
        ("SlidingWindow", {}, True),
        ("ShiftedSegments", {"n_heads": 2}, True),
        ("LLP", {"share_key_value": True}, False),  # rotated values: where a window begins matters
        ("LLP", {"dense_every": 2}, False),
        ("Transformer", {}, False),
        ("DoubleAttention", {}, False),
    ],
)
def test_what_reads_no_further_than_its_windows_is_scored_in_one_pass(wikitext, tmp_path, name, settings, is_joined):
    """The same loss of every token as by windows one by one, which compute each token twice."""
    model = build(name, vocab_size=257, **settings)
    data = attach(prepare(wikitext, tmp_path / "cache", batch_size=4, window_len=32), model)
    loader = data.test_dataloader()
    window_len, stride = model.geometry.scoring_window(32)
    longest = max(window.stop - window.start for batch in loader.batches for window in batch)
    assert longest == (window_len + 8 * stride if is_joined else window_len)
    losses = {}
    with torch.no_grad():
        for number, (inputs, targets, _) in enumerate(loader):
            nats = model.decoder.loss(inputs, targets).each
            for place, row in zip(loader.positions(number), nats, strict=True):
                losses |= {place + offset: loss.item() for offset, loss in enumerate(row)}
        (document,) = loader.documents
        tokens = torch.from_numpy(loader.file.tokens.astype("int64"))[None]
        for stop in range(stride, 40 * stride, stride):
            window = tokens[:, max(0, stop - window_len) : stop + 1]
            expected = model.decoder.loss(window[:, :-1], window[:, -stride:]).each[0]
            got = [losses[place] for place in range(stop - stride, stop)]
            assert got == pytest.approx(expected.tolist(), rel=0, abs=1e-11)
    assert len(losses) == document.tokens


def test_a_share_that_leaves_no_batch_is_refused(wikitext, tmp_path):
    data = attach(prepare(wikitext, tmp_path / "cache"), limit_val_batches=1e-6)
    with pytest.raises(SettingError, match=r"trainer\.limit_val_batches = 1e-06: this selects none of \d+ batches"):
        data.val_dataloader()


def test_seeds_and_epochs_draw_independently():
    """Epoch 1 of seed 0 is not epoch 0 of seed 1, and so on."""
    orders = {
        (seed, epoch): tuple(TrainingOrder(1000, 10, seed).start(epoch * 100 + i) for i in range(100))
        for seed in range(4)
        for epoch in range(4)
    }
    assert len(set(orders.values())) == 16
