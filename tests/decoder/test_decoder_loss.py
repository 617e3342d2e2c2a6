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
    losses = decoder(tokens, targets[:, -n_targets:])
    assert losses.each.shape == (3, n_scored)
    torch.testing.assert_close(losses.each.flatten(), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(losses.mean, expected.mean(), rtol=1e-12, atol=1e-12)
