"""The loss of each architecture is the cross-entropy of its own logits with the targets of the same positions."""

import pytest
import torch
import torch.nn.functional as F

from helpers.small_models import ARCHITECTURES, FORMS, LATENT, build

N = 18


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("n_targets", [1, 3, 5, 6, N])
def test_the_last_targets_belong_to_the_last_positions(name, n_targets):
    """Of latents all are scored in training, where there is a target for every input: the last five of 18 here."""
    decoder = build(name).decoder
    tokens, targets = torch.randint(19, (2, 3, N))
    n_scored = min(n_targets, 5 if name in LATENT else N)
    logits = decoder(tokens)[:, -n_scored:]
    expected = F.cross_entropy(logits.flatten(0, 1), targets[:, -n_scored:].flatten(), reduction="none")
    losses = decoder(tokens, targets[:, -n_targets:])
    assert losses.each.shape == (3, n_scored)
    torch.testing.assert_close(losses.each.flatten(), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(losses.mean, expected.mean(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("name", "settings"), FORMS)
@pytest.mark.parametrize("options", [{}, {"share_key_value": True}, {"rotary_first_layer_only": True}])
def test_layers_compute_what_the_last_positions_need(name, settings, options):
    """Loss and gradients are those of the whole, also where values are rotated by their places in the window."""
    decoder = build(name, **{**settings, **options}).train().decoder
    tokens, targets = torch.randint(19, (2, 3, 30 if name not in LATENT else N))
    for n_last in (0, 1, 4, 7):
        losses, logits = decoder(tokens, targets[:, tokens.shape[1] - n_last :]), decoder(tokens)
        n_scored = min(n_last, logits.shape[1])
        assert losses.each.shape == (3, n_scored)
        if n_scored:
            logits, expected = logits[:, -n_scored:].flatten(0, 1), targets[:, -n_scored:].flatten()
            pairs = zip(
                gradients(losses.mean, decoder), gradients(F.cross_entropy(logits, expected), decoder), strict=True
            )
            for one, other in pairs:
                torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


def gradients(loss, decoder):
    return torch.autograd.grad(loss, list(decoder.parameters()))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_places_pick_positions(name):
    """Logits there, and the loss whose gradient is that of the whole window with all other positions ignored."""
    model = build(name)
    decoder, (tokens, targets) = model.decoder, torch.randint(19, (2, 3, N))
    first = N - model.geometry.positions_out(N)
    assert first == (N - 5 if name in LATENT else 0)
    places = first + torch.stack([torch.randperm(N - first)[:4] for _ in range(3)])  # (3, 4), in no order
    labels = targets.gather(1, places)
    logits = decoder(tokens)
    expected = logits.gather(1, (places - first).unsqueeze(2).expand(-1, -1, 19))
    torch.testing.assert_close(decoder(tokens, places=places), expected, rtol=1e-12, atol=1e-12)
    elsewhere = torch.full((3, N), -100).scatter(1, places, labels)  # which torch ignores
    loss = F.cross_entropy(logits.flatten(0, 1), elsewhere[:, first:].flatten())
    losses = decoder(tokens, labels, places)
    torch.testing.assert_close(losses.mean, loss, rtol=1e-12, atol=1e-12)
    each = F.cross_entropy(expected.flatten(0, 1), labels.flatten(), reduction="none")
    torch.testing.assert_close(losses.each.flatten(), each, rtol=1e-12, atol=1e-12)
    parameters = [*decoder.parameters()]
    for one, other in zip(
        torch.autograd.grad(losses.mean, parameters), torch.autograd.grad(loss, parameters), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_head_is_counted_where_it_is(name):
    decoder = build(name).decoder
    n_out = geometry.positions_out(N)
    assert decoder.flops(N) == decoder.flops(N, n_out)
    assert decoder.flops(N) - decoder.flops(N, 2) == 2 * (n_out - 2) * 16 * 19
