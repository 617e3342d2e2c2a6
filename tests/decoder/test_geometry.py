"""What follows from an architecture's layers, against products of masks: who depends on whom through all layers."""

import pytest
import torch

from helpers.small_models import FORMS, LATENT, OWN_FORMS, build
from llp.errors import SettingError

ALL_FORMS = [*FORMS, *OWN_FORMS]


def truly(model, n):
    """The same, by gradients of the model's logits."""
    embedded = torch.randn(1, n, 16, dtype=torch.float64, requires_grad=True)
    model.decoder.embed.register_forward_hook(lambda module, args, output: embedded)
    logits = model(torch.zeros(1, n, dtype=torch.long))[0]  # (T, V)
    probe = torch.randn(19, dtype=torch.float64)
    rows = [torch.autograd.grad(row @ probe, embedded, retain_graph=True)[0][0] for row in logits]
    return torch.stack(rows).abs().amax(dim=-1) > 0


@pytest.mark.parametrize(("name", "form"), ALL_FORMS, ids=str)
@pytest.mark.parametrize("n", [1, 5, 18])
def test_the_masks_say_what_a_model_depends_on(name, form, n):
    """So causality, and contexts, are those of the definition: nothing else in the model connects positions."""
    model = build(name, **form)
    assert torch.equal(model.geometry.reads(n), truly(model, n))


@pytest.mark.parametrize("n_layers", [2, 3, 5])
@pytest.mark.parametrize(("name", "form"), ALL_FORMS, ids=str)
def test_contexts_are_counted_from_the_first_token_that_is_read(name, form, n_layers):
    model = build(name, n_layers=n_layers, **form)
    for n in (1, 4, 5, 18):
        reads = model.geometry.reads(n)
        positions = torch.arange(n)[n - len(reads) :]
        first = reads.to(torch.uint8).argmax(dim=1)
        contexts = model.geometry.context_lens(n)
        assert torch.equal(contexts[: n - len(reads)], torch.arange(1, n + 1)[: n - len(reads)])
        if form.get("kind") in ("Dilated", "Blind"):  # not monotone: may be counted too long, never too short
            assert (contexts[n - len(reads) :] >= positions + 1 - first).all()
        else:
            assert torch.equal(contexts[n - len(reads) :], positions + 1 - first)


@pytest.mark.parametrize("n_layers", [2, 3, 5])
@pytest.mark.parametrize(("name", "form"), ALL_FORMS, ids=str)
def test_the_reach_is_the_furthest_dependency_in_whole_units(name, form, n_layers):
    geometry = build(name, n_layers=n_layers, **form).geometry
    n = 120
    if geometry.reach is None:
        assert name in LATENT or "dense_every" in form or name in ("Transformer", "OwnModel")
        return
    reads = geometry.reads(n)
    far = torch.arange(n // 2, n) if geometry.reach <= n // 2 else torch.arange(geometry.reach, n)
    before = far // geometry.unit * geometry.unit - reads[far].to(torch.uint8).argmax(dim=1)
    furthest = max(0, int(before.max()))
    assert geometry.reach == -(-furthest // geometry.unit) * geometry.unit


@pytest.mark.parametrize(("name", "form"), ALL_FORMS, ids=str)
def test_what_the_last_positions_need_is_enough_for_them(name, form):
    """The trapezoid of layers gives the loss of the last positions bit for bit, in no more pairs."""
    model = build(name, **form)
    tokens, targets = torch.randint(19, (2, 2, 41 if name not in LATENT else 18))
    whole = model.decoder.loss(tokens, targets)
    for n_last in (1, 4, 7):
        n_last = min(n_last, whole.each.shape[1])
        got = model.decoder.loss(tokens, targets[:, -n_last:])
        torch.testing.assert_close(got.each, whole.each[:, -n_last:], rtol=1e-12, atol=1e-12)
        assert model.geometry.pair_count(41, n_last) <= model.geometry.pair_count(41)


def test_history_dropout_needs_causal_attention():
    from llp.decoder.block import Attention
    from llp.decoder.patterns import CausalAttention, Layer, SegmentAttention

    settings = build("LLP").settings
    Attention(settings, Layer(CausalAttention(), 5, history_dropout=0.1), rotary=True, output_std=None)
    with pytest.raises(SettingError, match=r"history_dropout = 0.1: .*SegmentAttention"):
        Attention(settings, Layer(SegmentAttention(4), 5, history_dropout=0.1), rotary=True, output_std=None)
