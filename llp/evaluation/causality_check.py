"""Probes a model, before a test reports metrics, for reading the tokens that it predicts."""

from collections.abc import Callable
from typing import NotRequired, TypedDict, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from llp.errors import SettingError, require
from llp.evaluation.loaders import ScoringLoader
from llp.language_model import LanguageModel


class Probe(TypedDict):
    """The probed positions of a window of `length` tokens."""

    length: int
    positions: list[int]


class Outcome(TypedDict):
    """What `test.json` says of causality."""

    causal: bool | None
    """True if all probes passed, None if the model was not probed."""
    probes: NotRequired[list[Probe]]


class CausalityCheck(Callback):
    """Probes the model for causality before a test, and stops the test if a probe fails.

    Windows of three lengths that occur in the test are probed: the shortest, the median and the longest. This takes
    about sixty forward passes.

    Args:
        enabled: Whether to probe. If not, `test.json` says that the model was not probed.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self.outcome: Outcome = {"causal": None}

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.enabled:
            return
        assert isinstance(pl_module, LanguageModel)
        model, geometry = pl_module, pl_module.geometry
        loader = cast(ScoringLoader, trainer.test_dataloaders)
        lengths = sorted({length for length, _, _ in loader.window_shapes})

        def logits(tokens: Tensor) -> Tensor:
            with trainer.precision_plugin.forward_context():
                return model.forward(tokens.to(model.device))

        probes = [
            check_causality(logits, model.settings.vocab_size, n, geometry.edges(n), geometry.context_lens(n))
            for n in sorted({lengths[0], lengths[len(lengths) // 2], lengths[-1]})
        ]
        self.outcome = {"causal": True, "probes": probes}


def check_causality(
    logits: Callable[[Tensor], Tensor],
    vocab_size: int,
    n: int,
    edges: list[int],
    context_lens: Tensor | None = None,
) -> Probe:
    """Probe a function from tokens (1, N) to the logits (1, T, vocab_size) of the last T positions.

    At every probed position p, two things are checked. If all tokens after p change, each logit up to p must stay the
    same bit for bit. If all tokens before p change, the logits at p must change, provided that p reads any of them. The
    probed positions are the first and the last two with logits, both sides of some edges of the pattern, and two
    random ones.

    Args:
        logits: The function.
        vocab_size: Number of tokens, at least 2.
        n: N, the length of the window.
        edges: Positions at which the attention pattern changes.
        context_lens: How many tokens each position predicts from, itself included, (N,); all up to itself by default.

    Returns:
        What was probed.

    Raises:
        SettingError: If the model reads a later token or no earlier one, or its logits are not finite.
    """
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(vocab_size, (1, n), generator=generator)
    other = (tokens + torch.randint(1, vocab_size, (1, n), generator=generator)) % vocab_size  # differs everywhere
    plain = logits(tokens)
    remedy = "they are not all finite: the model has diverged; test another checkpoint"
    require(bool(plain.isfinite().all()), "model", "its logits", remedy)
    first = n - plain.shape[1]  # the first position with logits
    positions = _probed(first, n, edges, generator)
    for p in positions:
        changed = logits(torch.cat((tokens[:, : p + 1], other[:, p + 1 :]), dim=1))
        leaks = (changed != plain)[0, : p + 1 - first].any(dim=-1).nonzero().flatten().tolist()
        if leaks:
            remedy = f"its logits change with the tokens after position {p}: it reads what it predicts"
            raise _failure(first + leaks[-1], remedy)
        if p == 0 or (context_lens is not None and context_lens[p] == 1):
            continue
        changed = logits(torch.cat((other[:, :p], tokens[:, p:]), dim=1))
        if torch.equal(changed[0, p - first], plain[0, p - first]):
            raise _failure(p, "its logits stay the same when every earlier token changes: it reads nothing")
    return {"length": n, "positions": positions}


def _failure(position: int, reason: str) -> SettingError:
    return SettingError("model", f"position {position}", f"{reason}. No metric is reported; fix the attention pattern")


def _probed(first: int, n: int, edges: list[int], generator: torch.Generator) -> list[int]:
    """At most eleven positions from `first` to n - 1."""
    candidates = [first, n - 2, n - 1]
    inside = [edge for edge in edges if first < edge < n - 1]
    for edge in inside[:1] + inside[len(inside) // 2 :][:1] + inside[-1:]:
        candidates += [edge - 1, edge]
    candidates += torch.randint(first, n, (2,), generator=generator).tolist()
    return sorted({p for p in candidates if first <= p})


def describe(outcome: Outcome) -> str:
    """The outcome in one sentence."""
    if outcome["causal"] is None:
        return "NOT probed for causality: the model may read the tokens that it predicts."
    probes = outcome["probes"]
    n_positions = sum(len(probe["positions"]) for probe in probes)
    lengths = ", ".join(f"{probe['length']:,}" for probe in probes)
    return (
        f"Probed for causality at {n_positions} positions of windows of {lengths} tokens: no logit up to them changed "
        "with later tokens, and theirs changed with earlier ones."
    )
