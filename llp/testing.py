"""Checks an architecture: training, scoring and generation must all compute what its layers define."""

from collections.abc import Callable, Iterator
from io import BytesIO
from itertools import pairwise
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from llp.decoder.extend import extend_each
from llp.decoder.geometry import Geometry
from llp.errors import SettingError
from llp.evaluation import probes
from llp.evaluation.probes import AttentionShape, draw_tokens, failure, first_difference
from llp.language_model import LanguageModel

_SMALL = {"vocab_size": 19, "dim": 16, "n_layers": 3, "n_heads": 2}


class Case(NamedTuple):
    """The model that is checked, and the lengths of the windows."""

    model: LanguageModel
    n: int
    """Length of windows for slow checks: they contain the reach, some units and all latents."""
    longest: int
    """Length of the longest windows, for the checks of dependence, scores and FLOPs."""


def check_architecture(cls: type[LanguageModel], max_len: int = 512, **init_args: Any) -> None:
    """Check that an architecture computes what its layers define, in training, scoring and generation.

    The model has large random weights and computes in float64 on the CPU, so that quantities that should be equal agree
    up to the last digits.

    Args:
        cls: The class of the architecture.
        max_len: Length of the longest windows that are checked.
        init_args: Arguments of the class; by default the model is small (three layers of width 16). Make segments,
            windows and latents a few tokens long, so that a window contains several of them.

    Raises:
        AssertionError: If a property does not hold. The message names the property and the position.
        SettingError: If the arguments can't be used.
    """
    for _ in checked_properties(cls, max_len, init_args):
        pass


def checked_properties(cls: type[LanguageModel], max_len: int, init_args: dict[str, Any]) -> Iterator[str]:
    """Check one property after another, as `check_architecture` does, and yield a statement of each that holds."""
    model = build(cls, init_args)
    case = Case(model, *_lengths(model.geometry, max_len))
    for holds in _PROPERTIES:
        statement = " ".join((holds.__doc__ or "").split()).rstrip(".")
        try:
            holds(case)
        except SettingError as error:
            raise AssertionError(f"{cls.__name__}: {error} (what must hold: {statement})") from error
        yield statement


def build(cls: type[LanguageModel], init_args: dict[str, Any]) -> LanguageModel:
    """A small model in float64, with weights so large that no token's influence vanishes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = cls(**{**_SMALL, **init_args})
        model.configure_model()
        model.double().eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def _lengths(geometry: Geometry, max_len: int) -> tuple[int, int]:
    """The lengths of a `Case`."""
    if geometry.compression is not None:
        max_len = min(max_len, geometry.compression.history_len + geometry.compression.latent_len)
    n = 3 * (geometry.latent_len or 8) + 1
    if geometry.reach is not None:
        n = max(n, geometry.reach + 2 * geometry.unit + 1)
    first_edge = min(geometry.edges(max_len), default=0) if geometry.latent_len is None else 0
    return min(max_len, max(n, 2 * first_edge + 1)), max_len


# The properties. The docstring of each states what must hold.


def _masks(case: Case) -> None:
    """`visible` is `sees` made causal; a declared reach hides nothing, and a pattern with a unit repeats after it."""
    for length in {1, case.n // 2 + 1, case.n, case.longest}:
        probes.check_masks(case.model.geometry, length)


def _attention(case: Case) -> None:
    """`attend` equals masked attention, for all queries, for the last queries, and with a cache."""
    geometry, n = case.model.geometry, case.n
    shapes: set[AttentionShape] = set()
    for length in (n, case.longest):
        for n_scored in {1, length // 3 + 1}:
            shapes |= probes.attention_shapes(geometry, length, n_scored)
    for pattern in {layer.pattern for layer in geometry.layers}:
        whole = pattern.in_window(n)
        stops = {*range(1, min(n, 40)), n}
        shapes |= {AttentionShape(whole, 1, stop, whole.first_kept(geometry.n_heads, stop - 1)) for stop in stops}
        if geometry.latent_len is None:
            shapes |= {AttentionShape(pattern.in_window(stop), stop, stop) for stop in stops}
    probes.check_attentions(shapes, geometry.n_heads)


def _dependence(case: Case) -> None:
    """Each position with a loss depends on all tokens that the layers let it read, and on no others."""
    model = case.model
    for length in {1, case.n // 2 + 1, case.n, case.longest}:
        depends = probes.dependence(model, model.settings.vocab_size, length)
        reads = model.geometry.reads(length)
        probes.check_dependence(depends, reads)
        if (reads & ~depends).any():
            row, token = (reads & ~depends).nonzero()[0].tolist()
            reason = f"its logits do not change with token {token}, which the layers let it read"
            raise failure(length - len(reads) + row, reason)


def _contexts(case: Case) -> None:
    """Context lengths and the reach include every token that a position depends on."""
    geometry, n = case.model.geometry, case.longest
    reads = geometry.reads(n)
    first = reads.to(torch.uint8).argmax(dim=1)
    for row, context in enumerate(geometry.context_lens(n)[n - len(reads) :].tolist()):
        position, begins = n - len(reads) + row, int(first[row])
        if position + 1 - context > begins:
            raise failure(position, f"its context of {context} tokens leaves out token {begins}, which it reads")
        if geometry.reach is not None and position // geometry.unit * geometry.unit - begins > geometry.reach:
            raise failure(position, f"it reads token {begins}, which is beyond the reach of {geometry.reach}")


def _scores(case: Case) -> None:
    """The loss at the last positions, or at chosen positions, equals that of the full forward pass."""
    model = case.model
    for length in {case.n // 2 + 1, case.n, case.longest}:
        n_out = model.geometry.positions_out(length)
        for n_scored in {1, min(4, n_out), n_out // 2 + 1, n_out}:
            probes.check_scoring(model, length, n_scored)
            probes.check_scoring(model, length, n_scored, at_labels=True)


def _reading(case: Case) -> None:
    """A text read token by token, or in pieces, has the same logits as in the windows that score it."""
    windows = _windows(case.model.geometry, case.n)
    for window in {*windows, case.model.geometry.scoring_window(case.longest)}:
        n = min(-(-window[0] // window[1]) + 2, 16) * window[1]
        probes.check_reading(case.model, window, n, most=n if window in windows else 64)


def _windows(geometry: Geometry, n: int) -> list[tuple[int, int]]:
    """Scoring windows: the default, and shorter ones with a small stride that hold less than the reach."""
    unit = geometry.unit
    short = max(unit, n // 2 // unit * unit)
    stride = max(unit, min(geometry.latent_len or n, short) // 3 // unit * unit)
    return [geometry.scoring_window(n), geometry.scoring_window(n, short, stride)]


def _side_by_side(case: Case) -> None:
    """Texts at different positions, read side by side, have the same logits as each text alone."""
    model = case.model
    window = _windows(model.geometry, case.n)[1]
    n_steps = min(2 * window[1] + 2, 40)
    lengths = (1, window[1] // 2 + 1, window[0] - 1)
    texts = draw_tokens(model.settings.vocab_size, 3, max(lengths) + n_steps)
    alone, caches = [], []
    for number, (text, length) in enumerate(zip(texts, lengths, strict=True)):
        caches.append(model.new_cache(3, window))
        model.extend(texts[:, :length], caches[-1])
        caches[-1].select([number])
        logits, cache = model.extend(text[None, :length], model.new_cache(1, window))
        for token in text[length : length + n_steps]:
            logits = torch.cat((logits, model.extend(token.view(1, 1), cache)[0]), dim=1)
        alone.append(logits[0])
    for step in range(n_steps):
        tokens = torch.stack([text[length + step] for text, length in zip(texts, lengths, strict=True)])
        together = extend_each(model.decoder, tokens[:, None], caches)
        for got, length, logits in zip(together, lengths, alone, strict=True):
            if first_difference(got[None], logits[length + step][None]) is not None:
                raise failure(length + step, "its logits change when other texts are read beside it")


def _burn_in(case: Case) -> None:
    """Pieces with a burn-in of the reach have the same losses and gradient as one pass over the text."""
    model = case.model
    geometry = model.geometry
    if geometry.reach is None or geometry.rotates_values:
        return
    step, n_text = 2 * geometry.unit, geometry.reach + 6 * geometry.unit
    tokens, targets = draw_tokens(model.settings.vocab_size, 2, 1, n_text)
    whole = model.decoder.loss(tokens, targets)
    pieces = []
    for start, stop in pairwise([*range(0, n_text, step), n_text]):
        begin = max(0, start - geometry.reach)
        losses = model.decoder.loss(tokens[:, begin:stop], targets[:, start:stop])
        wrong = first_difference(losses.each[0], whole.each[0, start:stop])
        if wrong is not None:
            raise failure(start + wrong, f"its loss with a burn-in of {start - begin} tokens is not that of one pass")
        pieces.append(losses.mean * (stop - start))
    _same_gradients(model, torch.stack(pieces).sum() / n_text, whole.mean)


def _gradient(case: Case) -> None:
    """In training no position reads a later token, and the gradient of each weight is that of the full forward pass."""
    model, n = case.model, case.n
    vocab_size = model.settings.vocab_size

    def logits(tokens: Tensor) -> Tensor:
        torch.manual_seed(0)  # for dropout
        return cast(Tensor, model(tokens))

    with torch.random.fork_rng(devices=[]):
        model.train()
        with torch.no_grad():
            cuts = probes.probed_positions(model.geometry, n, 12)
            probes.check_cuts(logits, vocab_size, n, cuts, [])
        tokens, targets = draw_tokens(vocab_size, 2, 2, n)
        for n_last in (n,) if model.settings.dropout else (n, 4):  # with fewer positions, dropout is drawn differently
            expected = logits(tokens)[:, -n_last:]
            torch.manual_seed(0)
            losses = model.decoder.loss(tokens, targets[:, -n_last:])
            mean = F.cross_entropy(expected.flatten(0, 1), targets[:, -expected.shape[1] :].flatten())
            _same_gradients(model, losses.mean, mean)
        model.eval()


def _same_gradients(model: LanguageModel, loss: Tensor, expected: Tensor) -> None:
    """Raise a `SettingError` if two losses have different gradients."""
    names, weights = zip(*model.named_parameters(), strict=True)
    pairs = (torch.autograd.grad(one, weights, allow_unused=True) for one in (loss, expected))
    for name, got, wanted in zip(names, *pairs, strict=True):
        if got is None or wanted is None or not wanted.any():
            raise SettingError("model", name, "the loss does not depend on this weight")
        if first_difference(got, wanted) is not None:
            raise SettingError("model", name, "its gradient is not that of the full forward pass")


def _checkpoint(case: Case) -> None:
    """A model restored from the hyperparameters and weights of a checkpoint has the same logits."""
    model, n = case.model, case.n
    file = BytesIO()
    torch.save({"hyper_parameters": dict(model.hparams), "state_dict": model.state_dict()}, file)
    file.seek(0)
    checkpoint = torch.load(file, weights_only=True)
    restored = type(model)(**checkpoint["hyper_parameters"])
    restored.configure_model()
    restored.double().eval().load_state_dict(checkpoint["state_dict"])
    tokens = draw_tokens(model.settings.vocab_size, 1, n)
    with torch.no_grad():
        got, expected = restored(tokens)[0], model(tokens)[0]
    wrong = first_difference(got, expected) if got.shape == expected.shape else 0
    if wrong is not None:
        raise failure(
            n - len(expected) + wrong,
            "a model restored from its checkpoint has different logits; see save_hyperparameters",
        )


def _flops(case: Case) -> None:
    """FLOPs count exactly the query-key pairs that the masks allow."""
    geometry, n = case.model.geometry, case.longest
    for n_last in (None, 1, min(5, geometry.positions_out(n))):
        counts = geometry.layer_pairs(n, n_last)
        for number, (layer, lengths) in enumerate(zip(geometry.layers, geometry.lengths(n, n_last), strict=True)):
            mask = layer.pattern.in_window(lengths.n_in).mask(geometry.n_heads, lengths.n_out, lengths.n_in)
            n_pairs = float(mask.sum()) / len(mask)
            if counts[number] != n_pairs:
                reason = (
                    f"{type(layer.pattern).__name__}.pair_count is {counts[number]:g}, but its mask has {n_pairs:g}"
                )
                raise SettingError("model", f"layer {number}", reason)


_PROPERTIES: tuple[Callable[[Case], None], ...] = (
    torch.no_grad()(_masks),
    torch.no_grad()(_attention),
    torch.no_grad()(_dependence),
    torch.no_grad()(_contexts),
    torch.no_grad()(_scores),
    torch.no_grad()(_reading),
    torch.no_grad()(_side_by_side),
    _burn_in,
    _gradient,
    _checkpoint,
    _flops,
)
