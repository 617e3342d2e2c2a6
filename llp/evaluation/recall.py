"""Recall tokens, which complete a bigram that stands in their context already, and how far back it stands."""

import numpy as np


def last_occurrences(tokens: np.ndarray) -> np.ndarray:
    """Where each bigram of a text stood last before.

    Args:
        tokens: (N + 1,), the inputs at N positions and behind each its target.

    Returns:
        (N,) int64: for each position the nearest one before it with the same input and the same target; -1: none.
    """
    bigrams = tokens[:-1].astype(np.int64) << 32 | tokens[1:].astype(np.int64)
    order = np.argsort(bigrams, kind="stable")  # equal ones stay in the order of the text
    repeats = bigrams[order[1:]] == bigrams[order[:-1]]
    occurrences = np.full(len(bigrams), -1)
    occurrences[order[1:][repeats]] = order[:-1][repeats]
    return occurrences


def recall_distances(tokens: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """How far before each target the same one stood last behind the same token, in the context that a model was given.

    The token that a document begins with counts like any other, since the model is given it, too: where it is a line's
    end, the text's first token can complete a bigram with it again. Where its number is its own, it never does.

    Args:
        tokens: (N + 1,), the inputs at N positions and behind each its target.
        starts: (N,), the first position of the context of each.

    Returns:
        (N,) int64, in tokens; 0: it is no recall token.
    """
    occurrences, positions = last_occurrences(tokens), np.arange(len(starts))
    # Any occurrence in the context is nearer than all before it, so the nearest one of the whole text decides.
    return np.where(occurrences >= starts, positions - occurrences, 0)


def distance_bins(longest: int) -> list[tuple[int, int]]:
    """First and last distance of 1, 2, 3 .. 4, 5 .. 8 and so on, up to the one that holds `longest`."""
    lasts = [1 << k for k in range((longest - 1).bit_length() + 1)]
    return [(last // 2 + 1, last) for last in lasts]
