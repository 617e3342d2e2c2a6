"""The loss of each architecture is the cross-entropy of its own logits with the targets of the same positions."""

import pytest
import torch
import torch.nn.functional as F

from helpers.small_models import ARCHITECTURES, LATENT, build

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
    losses = decoder.loss(tokens, targets[:, -n_targets:])
    assert losses.each.shape == (3, n_scored)
    torch.testing.assert_close(losses.each.flatten(), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(losses.mean, expected.mean(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_places_pick_positions(name):
    """Logits there, and the loss whose gradient is that of the whole window with all other positions ignored."""
    model = build(name)
    decoder, (tokens, targets) = model.decoder, torch.randint(19, (2, 3, N))
    first = N - model.geometry.positions_out(N)
    assert first == (N - 5 if name in LATENT else 0)
    positions = first + torch.stack([torch.randperm(N - first)[:4] for _ in range(3)])  # (3, 4), in no order
    labels = targets.gather(1, positions)
    logits = decoder(tokens)
    expected = logits.gather(1, (positions - first).unsqueeze(2).expand(-1, -1, 19))
    torch.testing.assert_close(decoder(tokens, positions), expected, rtol=1e-12, atol=1e-12)
    elsewhere = torch.full((3, N), -100).scatter(1, positions, labels)  # which torch ignores
    loss = F.cross_entropy(logits.flatten(0, 1), elsewhere[:, first:].flatten())
    losses = decoder.loss(tokens, labels, positions)
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
    n_out = decoder.geometry.positions_out(N)
    assert decoder.flops(N) == decoder.flops(N, n_out)
    assert decoder.flops(N) - decoder.flops(N, 2) == 2 * (n_out - 2) * 16 * 19
