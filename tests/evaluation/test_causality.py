"""The causality check and `check_architecture` pass every architecture, and refuse leaks of all kinds."""

from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F

from helpers.own_patterns import Dilated
from helpers.small_models import FORMS, OWN_FORMS, SIZES, build
from llp.decoder.patterns import CausalAttention, Layer, SegmentAttention, SlidingWindowAttention
from llp.errors import SettingError
from llp.evaluation import probes
from llp.evaluation.causality_check import check_causality, describe
from llp.language_model import LanguageModel
from llp.testing import check_architecture

N = 128


def checked(model, n=N, stride=64, **more):
    return check_causality(model, [n, n // 2 + 3], (n, stride), [(n, stride), (n // 2 + 3, 7)], **more)


@pytest.mark.parametrize(("name", "settings"), [*FORMS, *OWN_FORMS], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_architecture_passes(name, settings, dtype):
    """In float32 and lower, and nothing of the model or of the random state changes."""
    model = build(name, **settings).to(dtype)
    weights, state = {**model.state_dict()}, torch.get_rng_state()
    n, stride = model.geometry.scoring_window(18)
    outcome = checked(model, n, stride)
    assert outcome == {
        "causal": True,
        "probes": outcome["probes"],
        "whole_window": max(n, n // 2 + 3),
        "read": outcome["read"],
        "scored": sorted([[n // 2 + 3, 7], [n, stride]]),
    }
    assert [probe["length"] for probe in outcome["probes"]] == sorted([n // 2 + 3, n])
    assert n < outcome["read"] < n + 2 * stride
    assert {name: weight.data_ptr() for name, weight in model.state_dict().items()} == {
        name: weight.data_ptr() for name, weight in weights.items()
    }
    assert torch.equal(torch.get_rng_state(), state)


def test_what_was_probed_is_said():
    outcome = checked(build("LLP").float())
    assert describe(outcome).startswith("Probed for causality at every position of a window of 128 tokens, and at 9")
    assert "windows of 67, 128 tokens are those of the full" in describe(outcome)
    assert "a text of 192 tokens read piece by piece" in describe(outcome)
    labels = checked(
        build("PerceiverAR").float(), 18, 18, at_labels=True
    )  # more labels than latents: windows of a task
    assert labels["read"] == 0
    assert "read piece by piece" not in describe(labels)


# Leaks inside of a pattern: what `attend` shows beside the mask, of head, query, key, numbers of queries and of keys

IN_ATTENTION = {
    "every 50th position sees the next": lambda h, q, k, n_queries, n: (q % 50 == 49) & (k == q + 1),
    "segment ends see the next segment": lambda h, q, k, n_queries, n: (q % 16 == 15) & (k == q + 1),
    "one head at one position": lambda h, q, k, n_queries, n: (h == 1) & (q == 37) & (k == 38),
    "beyond a length only": lambda h, q, k, n_queries, n: (k == q + 1) & (n > 100),
    "beyond a length, at one position": lambda h, q, k, n_queries, n: (q == 111) & (k == 125) & (n > 100),
    "only with fewer queries than keys": lambda h, q, k, n_queries, n: (k == q + 1) & (n_queries < n),
}


@dataclass(frozen=True)
class Leak(CausalAttention):
    kind: str

    def attend(self, query, key, value, dropout_p=0.0):
        n_queries, n = query.shape[2], key.shape[2]
        head, q, k = (
            torch.arange(query.shape[1])[:, None, None],
            torch.arange(n - n_queries, n)[:, None],
            torch.arange(n),
        )
        more = IN_ATTENTION[self.kind](head, q, k, n_queries, n)
        return F.scaled_dot_product_attention(query, key, value, attn_mask=self.visible(head, q, k) | more)


@dataclass(frozen=True)
class OneTooMany(SlidingWindowAttention):
    """A wrong fast path: it reads a position more than the window has."""

    def attend(self, query, key, value, dropout_p=0.0):
        return SlidingWindowAttention(self.window + 1).attend(query, key, value, dropout_p)


@dataclass(frozen=True)
class Forgetful(SegmentAttention):
    """A cache drops a segment that is still seen."""

    def first_kept(self, n_heads, n):
        return super().first_kept(n_heads, n) + self.segment_len * (n > 60)


@dataclass(frozen=True)
class Shown(CausalAttention):
    """`visible` is not `sees`."""

    def visible(self, head, query, key):
        return super().visible(head, query, key) | ((query == 70) & (key == 90))


@dataclass(frozen=True)
class WrongUnit(Dilated):
    reach = None

    def sees(self, head, query, key):
        return super().sees(head, query, key) | (query % 7 == 0)


@dataclass(frozen=True)
class WrongReach(SlidingWindowAttention):
    @property
    def reach(self):
        return self.window - 3


@dataclass(frozen=True)
class Ahead(CausalAttention):
    """First positions that see each other, and have a loss."""

    @property
    def history_len(self):
        return 5


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


class Own(LanguageModel):
    """A model of one pattern, or in one layer of it alone."""

    pattern = CausalAttention()

    def __init__(self, vocab_size=19, **kwargs):
        super().__init__(vocab_size, **kwargs)

    def layers(self):
        return [Layer(CausalAttention()), *[Layer(self.pattern)] * (self.n_layers - 1)]


def own(pattern):
    return type("Own", (Own,), {"pattern": pattern})


# Leaks elsewhere in the model


def hooked(change):
    """A model whose second layer's MLP gives something else."""

    class Hooked(Own):
        def configure_model(self):
            super().configure_model()
            self.decoder.layers[1].mlp.register_forward_hook(lambda module, args, output: change(output))

    return Hooked


def next_at_77(x):
    more = torch.zeros_like(x)
    if x.shape[1] > 78:
        more[:, 77] = 1e-3 * x[:, 78]
    return x + more


class InTheCache(Own):
    def extend(self, tokens, cache, n_logits=None):
        logits, cache = super().extend(tokens, cache, n_logits)
        return logits + 1e-3 * (cache.n_read > 50), cache


class InTheScore(Own):
    def score_nats(self, batch):
        return super().score_nats(batch) * (1 - 1e-3 * (batch.targets == 3))


class InTraining(Own):
    def forward(self, tokens):
        logits = super().forward(tokens)
        return logits + logits.roll(-1, dims=1) if self.training else logits


LEAKS = {  # the class, and what the causality check says
    **{kind: (own(Leak(kind)), message) for kind, message in zip(
        IN_ATTENTION,
        ("position 49: .* it reads what it predicts", "position 15: Leak", "position 37: Leak.* in head 1",
         "position 0: Leak", "position 111: Leak", r"position \d+: Leak.* for \d+ queries over"),
        strict=True,
    )},
    "a wrong fast path": (own(OneTooMany(9)), "position 9: OneTooMany.attend is not .* positions$"),
    "a cache that forgets": (own(Forgetful(8)), r"position \d+: Forgetful.attend is not .* over \d+ of"),
    "a wrong mask": (own(Shown()), "position 70: Shown.visible shows it position 90, which comes later"),
    "a wrong unit": (own(WrongUnit()), "position 6: WrongUnit.sees does not repeat after its unit"),
    "a wrong reach": (own(WrongReach(9)), "position 7: WrongReach.reach hides position 0"),
    "history with a loss": (own(Ahead()), "position 0: Ahead.history_len"),
    "shifted round": (own(Rolled(16)), r"position \d+: Rolled.attend (is not|fails)"),
    "a norm over the sequence": (hooked(lambda x: x + 1e-3 * x.mean(dim=1, keepdim=True)), "position 0: .*token 1,"),
    "across the batch": (hooked(lambda x: x + 1e-3 * x.mean(dim=0)), r"position \d+: its logits change with token"),
    "one position after attention": (hooked(next_at_77), "position 77: its logits change with token 78, which"),
    "in the cache alone": (InTheCache, r"position \d+: read piece by piece"),
    "in the score alone": (InTheScore, r"position \d+: its score is not"),
}  # fmt: skip


@pytest.mark.parametrize("kind", LEAKS)
def test_a_leak_is_refused_with_its_position(kind):
    cls, message = LEAKS[kind]
    torch.manual_seed(0)
    model = cls(**SIZES)
    model.configure_model()
    with pytest.raises(SettingError, match=f"^model = {message}"):
        checked(model.eval())
    with pytest.raises(AssertionError, match=r"^\w+: model = position \d+: .*what must hold"):
        check_architecture(cls, max_len=N)


def test_a_leak_in_training_alone_is_for_the_architecture_check():
    with pytest.raises(AssertionError, match=r"model = position 0.*In training no position reads a later token"):
        check_architecture(InTraining, max_len=20)


# What the probes say of any function


def tabled(leak=0.0, own=1.0):
    """Logits from the current token and, `leak` times, the next."""
    table = torch.randn(19, 19, generator=torch.Generator().manual_seed(0))
    return lambda tokens: own * table[tokens] + leak * table[tokens].roll(-1, dims=1)


def cut(logits, n=40):
    probes.check_cuts(logits, 19, n, cuts=[5, 20, n - 1], readers=[7])


def test_a_cut_names_the_first_leak():
    with pytest.raises(SettingError, match=r"position 5: .*the tokens after position 5: it reads what it predicts"):
        cut(tabled(leak=1e-6))
    with pytest.raises(SettingError, match=r"position 7: .* every earlier token changes: it reads nothing"):
        cut(tabled())
    with pytest.raises(SettingError, match="they are not all finite"):
        cut(lambda tokens: tabled()(tokens) / 0)


def test_every_token_is_changed_alone_and_every_row_compared():
    """Also where rows come in several batches, of which the last is filled up."""
    depends = probes.dependence(lambda tokens: torch.nn.functional.one_hot(tokens, 19).cumsum(1).float(), 19, 300)
    assert torch.equal(depends, torch.ones(300, 300).tril().bool())
    with pytest.raises(SettingError, match="position 3: its logits change with no earlier token"):
        probes.check_dependence(depends & (torch.arange(300) != 3)[:, None], depends)
    with pytest.raises(SettingError, match="position 9: its logits change with token 4, which no layer"):
        probes.check_dependence(depends, depends & ~((torch.arange(300) == 9)[:, None] & (torch.arange(300) == 4)))


def test_probed_positions_are_the_ends_the_edges_and_some_at_random():
    geometry = build("LLP").geometry
    some = probes.probed_positions(geometry, 400, 20)
    assert len(some) == 20
    assert {0, 398, 399, 3, 4} <= set(some)
    assert some == sorted(set(some)) == probes.probed_positions(geometry, 400, 20)
    assert probes.probed_positions(geometry, 15, 20) == list(range(15))
    assert probes.probed_positions(build("PerceiverAR").geometry, 15, 20) == list(range(10, 15))
