"""The causality check passes every architecture, and catches one that leaks and one that reads nothing."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

from helpers.small_models import FORMS, OWN_SETTINGS, SIZES, build
from llp import PerceiverAR, ShiftedSegments
from llp.decoder.patterns import CausalAttention
from llp.errors import SettingError
from llp.evaluation.causality_check import check_causality

N, FIRST, VOCAB = 42, 10, 19


def checked(model, context_lens=True):
    edges, contexts = model.geometry.edges(18), model.geometry.context_lens(18)
    with torch.no_grad():
        return check_causality(model, 19, 18, edges, contexts if context_lens else None)


@pytest.mark.parametrize(("name", "settings"), FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_architecture_passes(name, settings, dtype):
    model = build(name, **settings).to(dtype)
    probe = checked(model)
    first = 18 - model(torch.zeros(1, 18, dtype=torch.long)).shape[1]
    assert probe["length"] == 18
    assert {first, 16, 17} <= set(probe["positions"])
    edges = [edge for edge in model.geometry.edges(18) if first < edge < 17]
    assert set(edges[:1]) <= set(probe["positions"])


# Models that leak, and models that read nothing


@dataclass(frozen=True)
class OneTooMany(CausalAttention):
    def attend(self, query, key, value, dropout_p=0.0):
        n_queries, n_keys = query.shape[-2], key.shape[-2]
        mask = torch.ones(n_queries, n_keys).tril(n_keys - n_queries + 1).bool()
        return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)


@dataclass(frozen=True)
class Rolled(CausalAttention):
    """S2-Attn as it was published: the shifted half is rolled, so that its last segment ends with the beginning."""

    segment_len: int

    def attend(self, query, key, value, dropout_p=0.0):
        outputs = []
        for number, shift in enumerate((0, self.segment_len // 2)):
            heads = [x.roll(-shift, dims=2).unflatten(2, (-1, self.segment_len)) for x in (query, key, value)]
            attended = F.scaled_dot_product_attention(*(x.flatten(0, 1) for x in heads), is_causal=True)
            whole = attended.unflatten(0, heads[0].shape[:2]).flatten(2, 3).roll(shift, dims=2)
            outputs.append(whole.chunk(2, dim=1)[number])
        return torch.cat(outputs, dim=1)


class Leaking(PerceiverAR):
    def layers(self):
        return [layer._replace(pattern=OneTooMany()) for layer in super().layers()]


class ShiftedRound(ShiftedSegments):
    def layers(self):
        return [layer._replace(pattern=Rolled(self.segment_len)) for layer in super().layers()]


@pytest.mark.parametrize(
    ("architecture", "base", "position"), [(Leaking, "PerceiverAR", 13), (ShiftedRound, "ShiftedSegments", 0)]
)
def test_a_pattern_that_leaks_is_caught_and_placed(architecture, base, position):
    torch.manual_seed(0)
    model = architecture(**SIZES, **OWN_SETTINGS[base])
    model.configure_model()
    message = f"position {position}: its logits change with the tokens after position {position}"
    with pytest.raises(SettingError, match=message):
        checked(model)


class Model:
    """Logits of the last N - FIRST positions from all earlier tokens; one at `at` also reads `reads`."""

    def __init__(self, at=None, reads=None, first=FIRST):
        self.at, self.reads, self.first = at, reads, first
        self.seen = []

    def __call__(self, tokens):
        self.seen.append(tokens.clone())
        table = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        logits = table[tokens].cumsum(dim=1)  # (1, N, VOCAB)
        if self.at is not None:
            logits[0, self.at] += table[tokens[0, self.reads]]
        return logits[:, self.first :]


def probe(model, edges=(), n=N):
    return check_causality(model, VOCAB, n, list(edges))["positions"]


def changed(change):
    """A model whose logits (1, N - FIRST, VOCAB) are changed in place."""
    model = Model()

    def call(tokens):
        logits = model(tokens)
        change(logits[0])
        return logits

    return call


def table(leak):
    """Logits from the current token alone, and `leak` times those from the next."""

    def call(tokens):
        of_tokens = torch.randn(19, 19, generator=torch.Generator().manual_seed(0))[tokens]
        return of_tokens + leak * of_tokens.roll(-1, dims=1)

    return call


def test_a_leak_between_the_probed_positions_is_caught_and_placed():
    """It shows at the first probed position behind it, if what it reads lies further on."""
    positions = probe(Model())
    hidden = [p for p in range(FIRST, N - 2) if p not in positions]
    assert len(hidden) > 20
    for at in hidden:
        behind = min(p for p in positions if p > at)
        message = f"position {at}: its logits change with the tokens after position {behind}: it reads what it predicts"
        with pytest.raises(SettingError, match=message):
            probe(Model(at=at, reads=N - 1))


def leak_twice(logits):
    logits[25 - FIRST] += logits[-1]
    logits[20 - FIRST] += logits[-1]


def forget_one(logits):
    logits[-2] = 1.0


def diverge(logits):
    logits[5, 3] = torch.inf


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (changed(leak_twice), "position 25: its logits change"),  # of several leaks the last one is named
        (changed(forget_one), f"position {N - 2}: its logits stay the same when every earlier token"),
        (changed(diverge), "they are not all finite"),
        (table(leak=1e-6), "it reads what it predicts"),
        (table(leak=0), "it reads nothing"),  # of the past it sees the current token only
    ],
)
def test_what_is_wrong_is_named(model, message):
    with pytest.raises(SettingError, match=message):
        probe(model)


def test_a_position_that_reads_nothing_by_definition_may_read_nothing():
    """The first position of a segment that sees no other; one that should read and does not is still caught."""
    model = build("LLP", look_back=0)
    checked(model)
    with pytest.raises(SettingError, match=r"position 4: .*it reads nothing"):
        checked(model, context_lens=False)
    with pytest.raises(SettingError, match=r"position 3: .*it reads nothing"):
        check_causality(table(leak=0), 19, 18, model.geometry.edges(18), model.geometry.context_lens(18))


# What is probed


@pytest.mark.parametrize("vocab_size", [2, VOCAB])
def test_tokens_are_changed_everywhere_after_a_position_or_everywhere_before(vocab_size):
    model = Model()
    positions = check_causality(model, vocab_size, N, [])["positions"]
    plain, *others = (tokens[0] for tokens in model.seen)
    assert len(others) == 2 * len(positions)
    assert len(plain.unique()) > min(vocab_size - 1, 10)
    for p, after, before in zip(positions, others[::2], others[1::2], strict=True):
        assert torch.equal(after != plain, torch.arange(N) > p)
        assert torch.equal(before != plain, torch.arange(N) < p)
        assert min(after.min(), before.min()) >= 0
        assert max(after.max(), before.max()) < vocab_size


def test_probes_are_the_same_each_time_and_leave_the_random_state_alone():
    runs = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        model = Model()
        probe(model)
        assert torch.equal(torch.get_rng_state(), state)
        runs.append(model.seen)
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


def test_both_sides_of_edges_are_probed():
    """Of the first, the middle and the last edge, and the ends of what is scored."""
    expected = {10, 15, 16, 27, 28, 35, 36, 40, 41}
    positions = probe(Model(), [4, 10, 16, 20, 24, 28, 32, 36, 41])
    # Inside of 10 .. 41 are 16, 20, 24, 28, 32 and 36; their middle one is the fourth.
    assert expected <= set(positions)
    assert positions == sorted(set(positions))
    assert set(positions) <= set(range(FIRST, N))
    drawn = set(probe(Model())) - {FIRST, N - 2, N - 1}
    assert len(drawn) == 2
    assert set(positions) - expected <= drawn


def test_the_ends_of_a_window_are_probed():
    assert probe(Model(first=0))[0] == 0
    assert probe(Model(first=0), n=1) == [0]
    for name in ("PerceiverAR", "DoubleAttention"):
        assert checked(build(name, latent_len=1))["positions"] == [17]
