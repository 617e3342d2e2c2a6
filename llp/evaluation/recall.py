"""Where the loss of a text comes from: by position in the scoring window, and on tokens that could be recalled."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from llp.scoring.windows import scoring_windows

if TYPE_CHECKING:
    from datamodules.loaders import ScoringLoader

_MOST_POSITION_BINS = 32


class Bin(TypedDict, total=False):
    """Number and total loss in nats of the tokens with a value from `first` to `last`."""

    first: int
    last: int
    tokens: int
    nats: float


class LossSlices(TypedDict):
    """What `slices.json` holds; see `loss_slices`."""

    position: list[Bin]
    recall: list[Bin]
    other: Bin


def last_occurrences(tokens: np.ndarray) -> np.ndarray:
    """Where each bigram of a text last occurred before.

    Args:
        tokens: (N + 1,), the inputs at N positions, and the target of the last.

    Returns:
        (N,) int64: for each position the nearest one before it with the same input and the same target, or -1.
    """
    bigrams = tokens[:-1].astype(np.int64) << 32 | tokens[1:].astype(np.int64)
    order = np.argsort(bigrams, kind="stable")  # equal ones stay in the order of the text
    repeats = bigrams[order[1:]] == bigrams[order[:-1]]
    occurrences = np.full(len(bigrams), -1)
    occurrences[order[1:][repeats]] = order[:-1][repeats]
    return occurrences


def recall_distances(tokens: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """The distance from each target back to where its bigram last occurred in the context of the prediction.

    The token that a document begins with is context like any other. Where it is a line's end, a text can repeat a
    bigram with it.

    Args:
        tokens: (N + 1,), the inputs at N positions, and the target of the last.
        starts: (N,), the first position of the context of each.

    Returns:
        (N,) int64, in tokens; 0 for a target that is no recall token.
    """
    occurrences, positions = last_occurrences(tokens), np.arange(len(starts))
    # Any occurrence in the context is nearer than all before it, so the nearest one of the whole text decides.
    return np.where(occurrences >= starts, positions - occurrences, 0)


def distance_bins(longest: int) -> list[tuple[int, int]]:
    """First and last distance of 1, 2, 3 .. 4, 5 .. 8 and so on, up to the one that holds `longest`."""
    lasts = [1 << k for k in range((longest - 1).bit_length() + 1)]
    return [(last // 2 + 1, last) for last in lasts]


def loss_slices(nats: np.ndarray, scored: np.ndarray, loader: "ScoringLoader") -> LossSlices:
    """The loss of a split by position in the scoring window, and on recall tokens by distance; needs no model.

    - `position`: by how many tokens of its window a token was predicted from, however far the architecture reaches. 1
      is the window's first input alone. The bins have equal width, the least that gives 32 or fewer.
    - `recall`: a token is a recall token if it and the one before it are neighbours in its context already, which is
      the part of its window before it. Its distance is counted from the last such place: 1 for the third of three equal
      tokens. The bins end at powers of two. `other` are all other tokens.

    Args:
        nats: (N,), the loss of each token of the split, in the order of the text.
        scored: (N,) booleans: which tokens were scored.
        loader: The scoring loader.
    """
    window_len, stride = loader.protocol["window_len"], loader.protocol["stride"]
    contexts, distances = np.empty(len(nats), np.int64), np.empty(len(nats), np.int64)
    first = 0
    for document in loader.documents:
        of_document = slice(first, first + document.tokens)
        tokens = loader.file.tokens[document.start : document.start + document.tokens + 1]
        windows = list(scoring_windows(0, document.tokens, window_len, stride))
        n_scored = np.array([window.n_scored for window in windows], np.int64)
        starts = np.array([window.start for window in windows], np.int64).repeat(n_scored)
        contexts[of_document] = np.arange(1, document.tokens + 1) - starts
        distances[of_document] = recall_distances(tokens, starts)
        first += document.tokens
    nats = nats[scored].astype(np.float64)
    width = -(-window_len // _MOST_POSITION_BINS)
    bounds = [(first, min(first + width - 1, window_len)) for first in range(1, window_len + 1, width)]
    recall = distances[scored]
    is_other = recall == 0
    return {
        "position": _bins(contexts[scored], nats, bounds),
        "recall": _bins(recall, nats, distance_bins(window_len)),
        "other": {"tokens": int(is_other.sum()), "nats": math.fsum(nats[is_other])},
    }


def _bins(values: np.ndarray, nats: np.ndarray, bounds: Iterable[tuple[int, int]]) -> list[Bin]:
    """Number and total loss of the tokens whose value is within each pair of bounds, without empty bins."""
    found: list[Bin] = []
    for first, last in bounds:
        inside = (first <= values) & (values <= last)
        if inside.any():
            found.append({"first": first, "last": last, "tokens": int(inside.sum()), "nats": math.fsum(nats[inside])})
    return found
