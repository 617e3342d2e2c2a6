"""Probes of a model: whether it reads what it predicts, and scores and generates as its full forward pass says.

Each function raises a `SettingError` that names the first wrong position. Positions are counted from the start of a
window. Tokens are drawn from a generator of their own, so that every call probes the same, and no random state changes.

Shapes: B batch, H heads, N positions, T positions with a loss (the last ones), Q queries, R rows of changed tokens.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from llp.decoder.extend import extend_each
from llp.decoder.geometry import Geometry
from llp.decoder.patterns import AttentionPattern
from llp.errors import SettingError, require
from llp.scoring.metric import ScoringBatch
from llp.scoring.windows import scoring_windows
from llp.training_module import TrainingModule

Logits = Callable[[Tensor], Tensor]
"""From tokens (B, N) to the logits (B, T, vocab_size) of the last T positions."""

_LONGEST_MASK = 4096  # positions of which all pairs are looked at
_ROWS = 256  # queries whose pairs are held at a time
_HEAD_DIM = 8
_COPIES = 8  # of a text that is read token by token
_BATCH_LOGITS = 2**23  # logits, and
_BATCH_TOKENS = 2**13  # tokens of the rows that are computed together
_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}  # of logits, relative to the largest; 0.1 in half precision


def failure(position: int, reason: str) -> SettingError:
    """The error that a probe raises."""
    return SettingError("model", f"position {position}", reason)


def draw_tokens(vocab_size: int, *shape: int, seed: int = 0) -> Tensor:
    """Random tokens."""
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def other_tokens(tokens: Tensor, vocab_size: int) -> Tensor:
    """Tokens that differ from the given ones everywhere."""
    return (tokens + 1 + draw_tokens(vocab_size - 1, *tokens.shape, seed=1)) % vocab_size


def probed_positions(geometry: Geometry, n: int, most: int) -> list[int]:
    """The ends of the scored positions, both sides of the pattern's edges, and positions drawn at random.

    Args:
        geometry: The layers.
        n: N, the length of the window.
        most: How many positions at most; all T, if that is enough. Half of them are drawn at random at least.
    """
    first = n - geometry.positions_out(n)
    if n - first <= most:
        return list(range(first, n))
    inside = [edge for edge in geometry.edges(n) if first < edge < n - 1]
    step = max(1, math.ceil(4 * len(inside) / most))
    near_edges = {position for edge in inside[::step] for position in (edge - 1, edge)}
    found = {first, n - 2, n - 1, *near_edges}
    drawn = torch.randperm(n - first, generator=torch.Generator().manual_seed(n)).tolist()
    for position in drawn[: most + len(found)]:
        if len(found) < most:
            found.add(first + position)
    return sorted(found)


# Definitions


def check_masks(geometry: Geometry, n: int) -> None:
    """Check what the layers' patterns say of a window: causal, no key hidden by the reach, repeating after a unit.

    All pairs are looked at; of a window longer than 4,096 positions, those of 256 queries.
    """
    lengths = geometry.lengths(n)
    for layer, n_in in dict.fromkeys((layer, one.n_in) for layer, one in zip(geometry.layers, lengths, strict=True)):
        pattern, n_scored = layer.pattern.in_window(n_in), min(n_in, geometry.positions_out(n))
        if pattern.history_len > n_in - n_scored:
            raise failure(n - n_scored, f"{_name(pattern)}.history_len lets it see what comes later, and it has a loss")
        rows = torch.arange(n_in)
        if n_in > _LONGEST_MASK:
            rows = torch.tensor(probed_positions(geometry, n, _ROWS)) - (n - n_in)
        for query in rows[rows >= 0].split(_ROWS):
            _check_rows(pattern, geometry.n_heads, query, torch.arange(n_in))


def _check_rows(pattern: AttentionPattern, n_heads: int, query: Tensor, key: Tensor) -> None:
    head, query = torch.arange(n_heads).view(-1, 1, 1), query.unsqueeze(1)
    seen, visible = pattern.sees(head, query, key), pattern.visible(head, query, key)
    is_mask = isinstance(seen, Tensor) and seen.dtype == torch.bool
    require(is_mask, f"{_name(pattern)}.sees", type(seen).__name__, "return a tensor of booleans")
    causal = key <= query.clamp(min=pattern.history_len - 1)
    _refuse(visible & ~causal, query, f"{_name(pattern)}.visible shows it position {{}}, which comes later")
    _refuse(visible & ~seen, query, f"{_name(pattern)}.visible shows it position {{}}, which `sees` does not")
    _refuse(seen & causal & ~visible, query, f"{_name(pattern)}.reach hides position {{}}, which `sees` shows it")
    if pattern.unit is not None:
        further = pattern.sees(head, query + pattern.unit, key + pattern.unit)
        _refuse((further != seen) & causal, query, f"{_name(pattern)}.sees does not repeat after its unit, at key {{}}")


def _refuse(wrong: Tensor, query: Tensor, reason: str) -> None:
    """Raise an error for the first wrong pair of (1 or H, Q, N)."""
    if wrong.any():
        wrong = wrong if wrong.ndim == 2 else wrong.any(dim=0)
        row, key = wrong.nonzero()[0].tolist()
        raise failure(int(query[row]), reason.format(key))


def _name(pattern: AttentionPattern) -> str:
    return type(pattern).__name__


class AttentionShape(NamedTuple):
    """The last Q of N positions attend."""

    pattern: AttentionPattern
    """In its window."""
    n_queries: int
    n_keys: int
    n_dropped: int = 0
    """How many keys at the front `attend` does not get, as from a cache."""


def check_attention(shape: AttentionShape, n_heads: int, device: str = "cpu") -> None:
    """Compare a pattern's `attend` with its `visible`, on random tensors in float64."""
    pattern, n_queries, n_keys, n_dropped = shape
    generator = torch.Generator().manual_seed(n_keys)

    def draw(n: int) -> Tensor:
        return torch.randn(1, n_heads, n, _HEAD_DIM, dtype=torch.float64, generator=generator).to(device)

    query, key, value = draw(n_queries), draw(n_keys), draw(n_keys)
    of_shape = f"for {n_queries:,} queries over {n_keys - n_dropped:,} of {n_keys:,} positions"
    try:
        attended = pattern.attend(query, key[:, :, n_dropped:], value[:, :, n_dropped:])
    except Exception as error:  # it may be anybody's
        raise failure(n_keys - n_queries, f"{_name(pattern)}.attend fails {of_shape}: {error}") from error
    head, positions = torch.arange(n_heads, device=device).view(-1, 1, 1), torch.arange(n_keys, device=device)
    for rows in torch.arange(n_queries, device=device).split(_ROWS):
        at = n_keys - n_queries + rows
        mask = pattern.visible(head, at.unsqueeze(1), positions)  # (1 or H, Q, N)
        shares = (query[:, :, rows] @ key.mT * _HEAD_DIM**-0.5).masked_fill(~mask, -torch.inf).softmax(-1)
        expected = torch.where(mask.any(-1, keepdim=True), shares, 0) @ value
        wrong = ((attended[:, :, rows] - expected).abs() > 1e-9).any(-1)[0]  # (H, Q)
        wrong |= attended[:, :, rows].isnan().any(-1)[0]
        if wrong.any():
            row = int(wrong.any(dim=0).nonzero()[0])
            of_head = int(wrong[:, row].nonzero()[0])
            later = positions > at[row].clamp(min=pattern.history_len - 1)
            moved = (x + later[:, None] * draw(n_keys) for x in (key, value))
            again = pattern.attend(query, *(x[:, :, n_dropped:] for x in moved))
            reads_on = bool((again != attended)[0, of_head, rows[row]].any())
            reason = "; it depends on a later position: it reads what it predicts" if reads_on else ""
            reason = f"attend is not attention under its mask, in head {of_head} {of_shape}{reason}"
            raise failure(int(at[row]), f"{_name(pattern)}.{reason}")


def check_attentions(shapes: set[AttentionShape], n_heads: int, device: str = "cpu") -> None:
    """`check_attention` of several shapes, those of whole windows first: they name the plainest position."""
    for shape in sorted(shapes, key=lambda one: (one.n_queries < one.n_keys, *one[1:])):
        check_attention(shape, n_heads, device)


def attention_shapes(geometry: Geometry, n: int, n_scored: int) -> set[AttentionShape]:
    """The shapes in which patterns attend in a window, in one whose last positions alone are scored, and in a cache.

    Of equal patterns in layers of different lengths, it is the first and the last; of a cache, a few pieces.
    """
    shapes: set[AttentionShape] = set()
    for n_last in (None, n_scored):
        found: dict[AttentionPattern, list[AttentionShape]] = {}
        for layer, one in zip(geometry.layers, geometry.lengths(n, n_last), strict=True):
            n_in = min(one.n_in, _LONGEST_MASK)
            pattern = layer.pattern.in_window(n_in)
            found.setdefault(pattern, []).append(AttentionShape(pattern, min(one.n_out, n_in), n_in))
        shapes |= {shape for of_pattern in found.values() for shape in (of_pattern[0], of_pattern[-1])}
    for pattern, n_in in {(shape.pattern, shape.n_keys) for shape in shapes if shape.n_keys == min(n, _LONGEST_MASK)}:
        for stop in {1, n_in // 3 + 1, 2 * n_in // 3 + 1, n_in}:
            for n_queries in {1, min(stop, 3)}:
                n_dropped = pattern.first_kept(geometry.n_heads, stop - n_queries)
                shapes.add(AttentionShape(pattern, n_queries, stop, n_dropped))
    return shapes


# What depends on what


def changes(logits: Logits, plain: Tensor, changed: Tensor) -> Iterator[Tensor]:
    """Which positions of rows of tokens have other logits than the plain tokens: (T,) booleans for each row.

    They are compared bit for bit, with a batch of the same shape in which each row is the plain one.

    Args:
        logits: The model.
        plain: (1, N) tokens.
        changed: (R, N) tokens.
    """
    n = plain.shape[1]
    one = logits(plain)
    require(bool(one.isfinite().all()), "model", "its logits", "they are not all finite: the model has diverged")
    size = max(1, min(len(changed), _BATCH_TOKENS // n, _BATCH_LOGITS // one.numel()))
    reference = logits(plain.expand(size, -1))
    for rows in changed.split(size):
        filled = torch.cat((rows, plain.expand(size - len(rows), -1)))
        yield from (logits(filled) != reference).any(dim=-1)[: len(rows)]


def dependence(logits: Logits, vocab_size: int, n: int) -> Tensor:
    """Which of N tokens each position with a loss depends on, by changing every token alone: (T, N) booleans."""
    plain = draw_tokens(vocab_size, 1, n)
    changed = torch.where(torch.eye(n, dtype=torch.bool), other_tokens(plain, vocab_size), plain)  # (N, N)
    return torch.stack(list(changes(logits, plain, changed)), dim=1).cpu()


def check_dependence(depends: Tensor, reads: Tensor) -> None:
    """Check which tokens positions depend on, (T, N), against what the layers let them read, (T, N)."""
    n_scored, n = depends.shape
    later = depends.triu(n - n_scored + 1)
    first = n - n_scored
    if later.any():
        row, token = later.nonzero()[0].tolist()
        reason = f"its logits change with token {token}, which comes later: it reads what it predicts"
        raise failure(first + row, reason)
    if (depends & ~reads).any():
        row, token = (depends & ~reads).nonzero()[0].tolist()
        raise failure(first + row, f"its logits change with token {token}, which no layer lets it see")
    before = torch.ones_like(depends).tril(first - 1)
    blind = (reads & before).any(dim=1) & ~(depends & before).any(dim=1)
    if blind.any():
        raise failure(first + int(blind.nonzero()[0]), "its logits change with no earlier token: it reads nothing")


def sees_any_before(geometry: Geometry, n: int, position: int) -> bool:
    """Whether a position with a loss sees one before itself, in any layer and head."""
    head = torch.arange(geometry.n_heads).view(-1, 1, 1)
    for layer, lengths in zip(geometry.layers, geometry.lengths(n), strict=True):
        query = position - (n - lengths.n_in)
        pattern = layer.pattern.in_window(lengths.n_in)
        if bool(pattern.visible(head, torch.tensor([[query]]), torch.arange(query)).any()):
            return True
    return False


def check_cuts(logits: Logits, vocab_size: int, n: int, cuts: list[int], readers: list[int]) -> None:
    """Check that no logit up to a cut changes when all tokens after it do, and that those of readers do otherwise.

    Args:
        logits: The model.
        vocab_size: Number of tokens, at least 2.
        n: N, the length of the window.
        cuts: Positions after which all tokens change.
        readers: Positions with a loss that depend on some token before them. Their logits must change when all do.
    """
    plain, position = draw_tokens(vocab_size, 1, n), torch.arange(n)
    other = other_tokens(plain, vocab_size)
    rows = [torch.where(position > cut, other, plain) for cut in cuts]
    rows += [torch.where(position < reader, other, plain) for reader in readers]
    for number, changed in enumerate(changes(logits, plain, torch.cat(rows))):
        first = n - len(changed)
        if number >= len(cuts):
            reader = readers[number - len(cuts)]
            if not changed[reader - first]:
                raise failure(reader, "its logits stay the same when every earlier token changes: it reads nothing")
            continue
        cut = cuts[number]
        leaks = changed[: cut + 1 - first].nonzero().flatten().tolist()
        if leaks:
            reason = f"its logits change with the tokens after position {cut}: it reads what it predicts"
            raise failure(first + leaks[0], f"{reason}, in windows of {n:,}")


# Reading and scoring


@contextmanager
def in_float64(module: nn.Module) -> Iterator[None]:
    """Compute in float64 for a while; nothing of the module changes."""
    tensors = [tensor for tensor in (*module.parameters(), *module.buffers()) if tensor.is_floating_point()]
    kept = [tensor.data for tensor in tensors]
    try:
        for tensor in tensors:
            tensor.data = tensor.data.double()
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for tensor, data in zip(tensors, kept, strict=True):
            tensor.data = data


def check_reading(model: TrainingModule, window: tuple[int, int], n: int, most: int) -> None:
    """Read a text token by token and in pieces, and compare with the full forward passes of the windows that score it.

    Where a token is read alone, later ones don't exist for the model; so this is a check of causality, too. Several
    copies of the text are read side by side, each from another position on, so that a step reads several tokens.

    Args:
        model: The model.
        window: Length and stride of the scoring windows.
        n: Tokens of the text, a multiple of the stride.
        most: How many positions at most are read token by token; in a longer text, some stretches of it.
    """
    text = draw_tokens(model.hparams["vocab_size"], 1, n, seed=2).to(model.device)
    windows = list(scoring_windows(0, n, *window))
    expected = torch.cat([model(text[:, one.start : one.stop])[:, -one.n_scored :] for one in windows], dim=1)[0]
    for positions, read in (_token_by_token(model, window, text, most), _in_pieces(model, window, text)):
        wrong = first_difference(read, expected[positions])
        if wrong is not None:
            reason = "read piece by piece, its logits are not those of the full forward pass of its window"
            raise failure(positions[wrong], f"{reason}; windows of {window[0]:,} tokens, stride {window[1]:,}")


def _token_by_token(
    model: TrainingModule, window: tuple[int, int], text: Tensor, most: int
) -> tuple[list[int], Tensor]:
    """Positions of a text (1, N), and the logits after each, where it alone was read: (positions, vocab_size)."""
    n = text.shape[1]
    starts = sorted({n * number // _COPIES for number in range(_COPIES)})
    caches = [model.new_cache(1, window) for _ in starts]
    for start, cache in zip(starts, caches, strict=True):
        if start:
            model.extend(text[:, :start], cache, 1)
    found: dict[int, Tensor] = {}
    for step in range(min(-(-n // len(starts)), -(-most // len(starts)))):
        at = [start + step for start in starts if start + step < n]
        found.update(zip(at, extend_each(model.decoder, text[0, at].unsqueeze(1), caches[: len(at)]), strict=True))
    return sorted(found), torch.stack([found[position] for position in sorted(found)])


def _in_pieces(model: TrainingModule, window: tuple[int, int], text: Tensor) -> tuple[list[int], Tensor]:
    """All positions of a text (1, N), and the logits after each, read in long pieces and single tokens."""
    n = text.shape[1]
    ends = torch.randperm(n, generator=torch.Generator().manual_seed(3)).tolist()[:7]
    stops = sorted({stop for end in ends for stop in (end, end + 1) if 0 < stop < n})
    cache, read = model.new_cache(1, window), []
    for start, stop in pairwise([0, *stops, n]):
        logits, cache = model.extend(text[:, start:stop], cache)
        read.append(logits[0])
    return list(range(n)), torch.cat(read)


def check_scoring(model: TrainingModule, n: int, n_scored: int, at_labels: bool = False) -> None:
    """Compare the scores of a window's last positions with the full forward pass of the same window.

    Args:
        model: The model.
        n: N, tokens of the window.
        n_scored: How many of its last positions are scored, at least 1.
        at_labels: Whether that many positions are drawn, and their logits compared, as a task is scored.
    """
    vocab_size = model.hparams["vocab_size"]
    inputs, targets = draw_tokens(vocab_size, 2, 1, n, seed=4).to(model.device)
    expected = model(inputs)  # (1, T, vocab_size)
    first = n - expected.shape[1]
    if at_labels:
        positions = first + torch.randperm(n - first, generator=torch.Generator().manual_seed(5))[:n_scored].sort()[0]
        got = model.decoder(inputs, positions[None].to(model.device))[0]  # (S, vocab_size)
        wanted = expected[0, positions - first]
    else:
        positions = torch.arange(max(first, n - n_scored), n)
        expected, targets = expected[:, -len(positions) :], targets[:, -len(positions) :]
        got = model.score_nats(ScoringBatch(inputs, targets, torch.zeros_like(targets[:, 0])))[0]  # (S,)
        wanted = F.cross_entropy(expected.mT.to(got.dtype), targets, reduction="none")[0]
    wrong = first_difference(got, wanted)
    if wrong is not None:
        reason = f"its score is not that of the full forward pass of its window, {n:,} tokens with {n_scored:,} scored"
        raise failure(int(positions[wrong]), reason)


def first_difference(got: Tensor, expected: Tensor) -> int | None:
    """The first index at which (N, ...) differs from what it should be by more than rounding; None if none does."""
    tolerance = _TOLERANCE.get(got.dtype, 0.1) * max(1.0, float(expected.abs().max()))
    wrong = ~((got - expected).abs() <= tolerance).view(len(got), -1).all(dim=1)
    return int(wrong.nonzero()[0]) if wrong.any() else None
