"""Chance in the order of training windows: where an epoch begins, and the order of its windows; batches of one kind."""

from collections import Counter

from datamodules.loaders import TrainingOrder

N_TOKENS, STRIDE, N_WINDOWS, EPOCHS = 25, 4, 6, 6000


def epochs(seed=3):
    """Of each epoch the offset, and its windows' numbers from there, in their order.

    Six windows of stride 4 in a circle of 25: the last one has five tokens to the first, which tells them apart.
    """
    order = TrainingOrder(N_TOKENS, STRIDE, seed)
    for epoch in range(EPOCHS):
        starts = [order.start(epoch * N_WINDOWS + number) for number in range(N_WINDOWS)]
        (offset,) = (start for start in starts if (start - STRIDE) % N_TOKENS not in starts)
        yield offset, [(start - offset) % N_TOKENS // STRIDE for start in starts]


def assert_even(counts, n_kinds, n_draws):
    expected, spread = n_draws / n_kinds, (n_draws / n_kinds * (1 - 1 / n_kinds)) ** 0.5
    assert len(counts) == n_kinds
    for kind, times in counts.items():
        assert abs(times - expected) < 5 * spread, kind


def test_offsets_and_orders_are_drawn_evenly():
    """An epoch begins anywhere in the stream, so that no token is left out for good, and each order is as likely."""
    drawn = [*epochs()]
    assert all(sorted(windows) == [*range(N_WINDOWS)] for _, windows in drawn)
    assert_even(Counter(offset for offset, _ in drawn), N_TOKENS, EPOCHS)
    for place in range(N_WINDOWS):
        assert_even(Counter(windows[place] for _, windows in drawn), N_WINDOWS, EPOCHS)
    assert_even(Counter((windows[0], windows[1]) for _, windows in drawn), N_WINDOWS * (N_WINDOWS - 1), EPOCHS)
    assert_even(Counter(offset % 2 + 2 * (windows[0] % 2) for offset, windows in drawn if offset), 4, 24 / 25 * EPOCHS)


def test_seeds_and_epochs_draw_independently():
    """Epoch 1 of seed 0 is not epoch 0 of seed 1, and so on."""
    orders = {
        (seed, epoch): tuple(TrainingOrder(1000, 10, seed).start(epoch * 100 + i) for i in range(100))
        for seed in range(4)
        for epoch in range(4)
    }
    assert len(set(orders.values())) == 16
