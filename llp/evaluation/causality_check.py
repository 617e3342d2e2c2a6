"""Probes a model, before a test reports metrics, for reading the tokens that it predicts."""

from collections import defaultdict
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict, TypeVar, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from llp.evaluation import probes
from llp.training_module import TrainingModule, inputs_and_targets

if TYPE_CHECKING:
    from datamodules.loaders import ScoringLoader
    from datamodules.synthetic import ExampleScoringLoader

V = TypeVar("V", int, tuple[int, int])

_FLOPS = defaultdict(lambda: 1e13, cpu=3e10)
"""How much each black-box probe may compute, by device type: seconds. A few positions are always probed."""
_LONGEST_WHOLE = 512
_FEWEST_CUTS, _MOST_CUTS = 8, 48
_MOST_STEPS = 1024  # positions of a text that are read token by token


class Probe(TypedDict):
    """The probed positions of a window of `length` tokens."""

    length: int
    positions: list[int]


class Outcome(TypedDict):
    """What `test.json` says of causality."""

    causal: bool | None
    """True if all probes passed, None if the model was not probed."""
    probes: NotRequired[list[Probe]]
    whole_window: NotRequired[int]
    """Length of the window in which each token was changed alone, and each position looked at."""
    read: NotRequired[int]
    """Length of the text that was read piece by piece; 0 if the model can't."""
    scored: NotRequired[list[list[int]]]
    """Length and scored positions of the windows that were scored."""


class CausalityCheck(Callback):
    """Probes the model for causality before a test, and stops the test if a probe fails.

    - Masks: at every position of a window, `visible` shows nothing that comes later, and equals `sees`.
    - Attention: `attend` equals its mask on random tensors, also for fewer queries than keys and with a cache.
    - Dependence: in a window of up to 512 tokens, each is changed alone: the logits of every position must stay the
      same, bit for bit, unless the layers let it read that token. In windows of three lengths that are scored (the
      shortest, the median and the longest) all tokens after a position change, and no logit up to it may; positions
      are the edges of the pattern and some drawn at random.
    - Reading and scoring: texts read piece by piece and scores are those of the full forward pass of the same window,
      computed in float64 where the device can. Up to 1,024 positions are read token by token.

    This takes some seconds for a small model on a CPU; on larger ones fewer positions are probed, as the report says.

    Args:
        enabled: Whether to probe. If not, `test.json` says that the model was not probed.
    """

    def __init__(self, enabled: bool = True) -> None:
        self.enabled = enabled
        self.outcome: Outcome = {"causal": None}

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.outcome = {"causal": None}
        if not self.enabled or not hasattr(trainer.test_dataloaders, "protocol"):
            return
        assert isinstance(pl_module, TrainingModule)
        loader = cast("ScoringLoader | ExampleScoringLoader", trainer.test_dataloaders)
        window = loader.protocol["window_len"], loader.protocol["stride"]
        lengths = [length for length, _, _ in loader.window_shapes]
        # What is computed: windows that follow each other may be joined to longer ones.
        scored = [(one.stop - one.start, one.n_scored) for batch in loader.batches for one in batch if one.n_scored]
        with trainer.precision_plugin.forward_context():
            self.outcome = check_causality(pl_module, lengths, window, scored, "candidates" in loader.protocol)

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        """Of a loader that is no benchmark's, the first batch says which windows are scored."""
        if not self.enabled or batch_idx or self.outcome["causal"] or hasattr(trainer.test_dataloaders, "protocol"):
            return
        assert isinstance(pl_module, TrainingModule)
        inputs, targets, *positions = inputs_and_targets(batch)
        n, unit = inputs.shape[1], pl_module.geometry.unit
        window_len = max(unit, n // unit * unit)
        stride = max(unit, min(pl_module.geometry.latent_len or n, window_len // 2) // unit * unit)
        scored = [(n, min(targets.shape[1], pl_module.geometry.positions_out(n)))]
        with trainer.precision_plugin.forward_context():
            self.outcome = check_causality(pl_module, [n], (window_len, stride), scored, bool(positions))
        rank_zero_info(describe(self.outcome))


@torch.no_grad()  # what a sharded model gathers in inference mode could not be used after it
def check_causality(
    model: TrainingModule,
    lengths: list[int],
    window: tuple[int, int],
    scored: list[tuple[int, int]],
    at_labels: bool = False,
) -> Outcome:
    """Probe a model as `CausalityCheck` does.

    Args:
        model: A model in evaluation mode, in the precision that it is scored in.
        lengths: Those of the windows that score a text.
        window: Length and stride of these windows.
        scored: Length and number of scored positions of the windows that are computed.
        at_labels: Whether a task is scored, at its labels.

    Returns:
        What was probed.

    Raises:
        SettingError: If a probe fails; it names the position.
    """
    geometry = model.geometry
    lengths, shapes = _spread(lengths), _spread(scored)
    n_scored = dict(shapes)
    attention: set[probes.AttentionShape] = set()
    for n in {*lengths, *n_scored}:
        probes.check_masks(geometry, n)
        attention |= probes.attention_shapes(geometry, n, n_scored.get(n, 1))
    has_float64 = model.decoder.has_float64 and model.device.type != "mps"
    is_exact = has_float64 and model.device_mesh is None  # and parameters of one piece
    device = str(model.device) if is_exact else "cpu"
    probes.check_attentions(attention, geometry.n_heads, device)

    def logits(tokens: Tensor) -> Tensor:
        return model.forward(tokens.to(model.device))

    vocab_size, budget = model.hparams["vocab_size"], _FLOPS[model.device.type]
    whole = min(lengths[-1], _LONGEST_WHOLE)
    while whole > 1 and whole * model.decoder.flops(whole) > budget:
        whole = whole * 7 // 8
    probes.check_dependence(probes.dependence(logits, vocab_size, whole), geometry.reads(whole))
    probed = [Probe(length=n, positions=_check_cuts(model, logits, n, budget / len(lengths))) for n in lengths]
    n_read = _readable_len(model, window, budget)
    exact: AbstractContextManager[None] = nullcontext()
    if is_exact:
        exact = probes.in_float64(model.decoder)
    with exact, torch.autocast(model.device.type, enabled=False) if is_exact else nullcontext():
        for n, n_last in shapes:
            probes.check_scoring(model, n, n_last, at_labels)
        if n_read:
            probes.check_reading(model, window, n_read, _MOST_STEPS)
    return {
        "causal": True,
        "probes": probed,
        "whole_window": whole,
        "read": n_read,
        "scored": [[n, n_last] for n, n_last in shapes],
    }


def _spread(values: list[V]) -> list[V]:
    """The least, the median and the greatest of some values."""
    distinct = sorted(set(values))
    return sorted({distinct[0], distinct[len(distinct) // 2], distinct[-1]})


def _check_cuts(model: TrainingModule, logits: probes.Logits, n: int, budget: float) -> list[int]:
    """Change all that follows some positions of a window, and all that precedes a few; the former are returned."""
    geometry = model.geometry
    n_cuts = int(min(max(budget / model.decoder.flops(n), _FEWEST_CUTS), _MOST_CUTS))
    cuts = probes.probed_positions(geometry, n, n_cuts)
    readers = [
        position for position in cuts[:: max(1, len(cuts) // 3)] if probes.sees_any_before(geometry, n, position)
    ]
    probes.check_cuts(logits, model.hparams["vocab_size"], n, cuts, readers)
    return cuts


def _readable_len(model: TrainingModule, window: tuple[int, int], budget: float) -> int:
    """Length of a text that fills a window and moves on, if that is not too much; 0 if windows can't be read."""
    window_len, stride = window
    if model.geometry.latent_len is not None and stride > model.geometry.latent_len:
        return 0  # those of a task, whose labels are among the latents
    n_windows = max(2, int(budget / model.decoder.flops(window_len)))
    return min(-(-window_len // stride) + 1, n_windows) * stride


def describe(outcome: Outcome) -> str:
    """The outcome in a few sentences."""
    if outcome["causal"] is None:
        return "NOT probed for causality: the model may read the tokens that it predicts."
    probes = outcome["probes"]
    n_positions = sum(len(probe["positions"]) for probe in probes)
    lengths = ", ".join(f"{probe['length']:,}" for probe in probes)
    scored = ", ".join(f"{n:,}" for n in sorted({n for n, _ in outcome["scored"]}))
    text = (
        f"Probed for causality at every position of a window of {outcome['whole_window']:,} tokens, and at "
        f"{n_positions} positions of windows of {lengths} tokens: no logit changed with a later token. Scores of "
        f"windows of {scored} tokens are those of the full forward pass"
    )
    if outcome["read"]:
        text += f", and so are the logits of a text of {outcome['read']:,} tokens read piece by piece"
    return text + "."
