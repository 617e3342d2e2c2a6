"""What the certificate looks at: all positions up to the probed one, tokens that differ everywhere, all lengths."""

from types import SimpleNamespace

import pytest
import torch

from llp.errors import SettingError
from llp.evaluation.causality_check import CausalityCheck, check_causality

N, FIRST, VOCAB = 42, 10, 19


class Model:
    """Logits of the last N - FIRST positions out of all earlier tokens; that of `at` reads `reads` too."""

    def __init__(self, at=None, reads=None, first=FIRST):
        self.at, self.reads, self.first = at, reads, first
        self.seen = []

    def __call__(self, tokens):
        self.seen.append(tokens.clone())
        table = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        logits = table[tokens].cumsum(dim=1)  # (1, N, VOCAB): causal, and each reads every earlier token
        if self.at is not None:
            logits[0, self.at] += table[tokens[0, self.reads]]
        return logits[:, self.first :]


def probed():
    return check_causality(Model(), VOCAB, N, [])["positions"]


def test_a_leak_between_the_probed_positions_is_caught_and_placed():
    """It shows at the first probed position behind it, if what it reads lies further on."""
    positions = probed()
    hidden = [p for p in range(FIRST, N - 2) if p not in positions]
    assert len(hidden) > 20
    for at in hidden:
        behind = min(p for p in positions if p > at)
        message = f"position {at}: its logits change with the tokens after position {behind}: it reads what it predicts"
        with pytest.raises(SettingError, match=message):
            check_causality(Model(at=at, reads=N - 1), VOCAB, N, [])


def test_of_several_leaks_the_last_is_named():
    class Twice(Model):
        def __call__(self, tokens):
            logits = super().__call__(tokens)
            logits[0, 20 - FIRST] += logits[0, -1]
            return logits

    assert not set(range(20, 26)) & set(probed())
    with pytest.raises(SettingError, match="position 25: its logits change"):
        check_causality(Twice(at=25, reads=N - 1), VOCAB, N, [])


@pytest.mark.parametrize("at", [FIRST, N - 2])
def test_a_leak_at_a_probed_position_is_caught_where_it_reads_one_token_only(at):
    message = f"position {at}: its logits change with the tokens after position {at}"
    with pytest.raises(SettingError, match=message):
        check_causality(Model(at=at, reads=at + 1), VOCAB, N, [])


def test_what_is_changed_and_what_stays():
    """After the first pass each one changes all tokens after a position, and only those, or all before it."""
    for vocab_size in (2, VOCAB):
        model = Model()
        positions = check_causality(model, vocab_size, N, [])["positions"]
        plain, *changed = ((tokens[0]) for tokens in model.seen)
        assert len(changed) == 2 * len(positions)
        assert plain.unique().tolist() == list(range(vocab_size)) if vocab_size == 2 else len(plain.unique()) > 10
        for p, after, before in zip(positions, changed[::2], changed[1::2], strict=True):
            assert torch.equal(after != plain, torch.arange(N) > p)
            assert torch.equal(before != plain, torch.arange(N) < p)
            assert min(after.min(), before.min()) >= 0
            assert max(after.max(), before.max()) < vocab_size


def test_probes_are_the_same_each_time_and_draw_no_chance_of_others():
    """Two tests of one checkpoint probe alike, and what is drawn after them is what it would have been."""
    runs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        model = Model()
        check_causality(model, VOCAB, N, [])
        assert torch.equal(torch.get_rng_state(), state)
        runs.append(model.seen)
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


def test_a_model_that_forgets_at_one_position_is_caught():
    class Forgetful(Model):
        def __call__(self, tokens):
            logits = super().__call__(tokens)
            logits[0, -2] = torch.ones(VOCAB)  # of the position N - 2
            return logits

    with pytest.raises(SettingError, match=f"position {N - 2}: its logits stay the same when every earlier token"):
        check_causality(Forgetful(), VOCAB, N, [])


def test_the_first_position_of_all_has_nothing_to_read():
    assert check_causality(Model(first=0), VOCAB, N, [])["positions"][0] == 0
    assert check_causality(Model(first=0), VOCAB, 1, []) == {"length": 1, "positions": [0]}


def test_a_position_that_is_not_finite_is_told_so():
    class Diverged(Model):
        def __call__(self, tokens):
            logits = super().__call__(tokens)
            logits[0, 5, 3] = torch.inf
            return logits

    with pytest.raises(SettingError, match="they are not all finite"):
        check_causality(Diverged(), VOCAB, N, [])


def test_both_sides_of_edges_are_probed():
    """Of the first, the middle and the last edge, and the ends of what is scored."""
    expected = {10, 15, 16, 27, 28, 35, 36, 40, 41}
    positions = check_causality(Model(), VOCAB, N, [4, 10, 16, 20, 24, 28, 32, 36, 41])["positions"]
    # Inside of 10 .. 41 lie 16, 20, 24, 28, 32 and 36; their middle one is the fourth.
    assert expected <= set(positions)
    assert len(positions) <= 11
    assert positions == sorted(set(positions))
    assert set(positions) <= set(range(FIRST, N))
    drawn = set(probed()) - {FIRST, N - 2, N - 1}
    assert len(drawn) == 2  # elsewhere than the positions that are always probed: those are not left to chance
    assert set(positions) - expected <= drawn


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [([7], [7]), ([7, 9], [7, 9]), ([30, 7, 12, 9, 18], [7, 12, 30]), ([30, 7, 12, 9], [7, 12, 30])],
)
def test_the_shortest_a_middle_and_the_longest_window_are_probed(lengths, expected):
    """Each as its precision computes it, with the edges that the architecture has in such a length."""
    modes, asked = [], []

    class Context:
        def __enter__(self):
            modes.append("in")

        def __exit__(self, *_):
            modes.append("out")

    class Language(Model):
        device = torch.device("cpu")
        hparams = {"vocab_size": VOCAB}

        def __call__(self, tokens):
            assert modes[-1] == "in"
            return super().__call__(tokens)

        def pattern_edges(self, n):
            asked.append(n)
            return []

        def context_lens(self, n):
            return torch.arange(1, n + 1)

    shapes = {(length, n_scored, True): 3 for length in lengths for n_scored in (1, 2)}
    trainer = SimpleNamespace(
        test_dataloaders=SimpleNamespace(window_shapes=shapes),
        precision_plugin=SimpleNamespace(forward_context=Context),
    )
    certificate = CausalityCheck()
    assert certificate.outcome == {"causal": None}
    certificate.on_test_start(trainer, Language(first=2))
    assert certificate.outcome["causal"] is True
    assert [probe["length"] for probe in certificate.outcome["probes"]] == expected == asked
    assert modes[-1] == "out"

    unused = CausalityCheck(enabled=False)
    unused.on_test_start(trainer, Language(at=3, reads=5))
    assert unused.outcome == {"causal": None}
