"""Certifies, before a test reports figures, that the model being scored reads no token that it predicts."""

from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from llp.errors import SettingError


class CausalityCheck(Callback):
    """Probes the model for causality before a test, and stops the test if it fails; takes some sixty forward passes.

    Windows of three lengths that occur in the test are probed: the shortest, a middle one and the longest.

    Args:
        enabled: Whether to probe. If not, `test.json` says that nothing was certified.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self.outcome: dict[str, Any] = {"causal": None}

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.enabled:
            return
        model: Any = pl_module
        loader: Any = trainer.test_dataloaders
        lengths = sorted({length for length, _, _ in loader.window_shapes})

        def logits(tokens: Tensor) -> Tensor:
            with trainer.precision_plugin.forward_context():
                return model(tokens.to(model.device))

        geometry = model.geometry
        probes = [
            check_causality(logits, model.hparams["vocab_size"], n, geometry.edges(n), geometry.context_lens(n))
            for n in sorted({lengths[0], lengths[len(lengths) // 2], lengths[-1]})
        ]
        self.outcome = {"causal": True, "probes": probes}


def check_causality(
    logits: Callable[[Tensor], Tensor],
    vocab_size: int,
    n: int,
    edges: list[int],
    context_lens: Tensor | None = None,
) -> dict[str, Any]:
    """Probe a function from tokens (1, N) to logits (1, T, vocab_size) of the last T positions.

    For every probed position p: if all tokens after p change, each logit up to p must stay the same bit for bit; if
    all tokens before p change, the logits of p must change, if p reads any of them. The probed positions are the
    first, the last and the last but one that are scored, both sides of the pattern's edges, and some drawn at random.

    Args:
        logits: The model.
        vocab_size: Number of tokens, at least 2.
        n: N, the length of the probe.
        edges: Positions at which the architecture's attention pattern changes.
        context_lens: How many tokens each position predicts from, itself included, (N,); None: all before it.

    Returns:
        What was probed: `length` (N) and `positions`.

    Raises:
        SettingError: If the model reads a later token, or no earlier one; it says where.
    """
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocab_size, (1, n), generator=generator)
    other = (tokens + torch.randint(1, vocab_size, (1, n), generator=generator)) % vocab_size  # differs everywhere
    plain = logits(tokens)
    if not plain.isfinite().all():
        raise SettingError(
            "model", "its logits", "they are not all finite: the model has diverged; test another checkpoint"
        )
    first = n - plain.shape[1]  # the first scored position
    positions = _probed(first, n, edges, generator)
    for p in positions:
        changed = logits(torch.cat((tokens[:, : p + 1], other[:, p + 1 :]), dim=1))
        moved = (changed != plain)[0, : p + 1 - first].any(dim=-1).nonzero().flatten().tolist()
        if moved:
            raise SettingError(
                "model",
                f"position {first + moved[-1]}",
                f"its logits change with the tokens after position {p}: it reads what it predicts. "
                "No figure is reported; fix the attention pattern",
            )
        if p == 0 or (context_lens is not None and context_lens[p] == 1):
            continue
        changed = logits(torch.cat((other[:, :p], tokens[:, p:]), dim=1))
        if torch.equal(changed[0, p - first], plain[0, p - first]):
            raise SettingError(
                "model",
                f"position {p}",
                "its logits stay the same when every earlier token changes: it reads nothing. No figure is reported; "
                "fix the attention pattern",
            )
    return {"length": n, "positions": positions}


def _probed(first: int, n: int, edges: list[int], generator: torch.Generator) -> list[int]:
    """At most eleven positions from `first` to n - 1."""
    candidates = [first, n - 2, n - 1]
    inside = [edge for edge in edges if first < edge < n - 1]
    for edge in inside[:1] + inside[len(inside) // 2 :][:1] + inside[-1:]:
        candidates += [edge - 1, edge]
    candidates += torch.randint(first, n, (2,), generator=generator).tolist()
    return sorted({p for p in candidates if first <= p})
