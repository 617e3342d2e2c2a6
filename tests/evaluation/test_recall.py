"""Which tokens can be recalled, and from how far: by hand and by the definition."""

import random

import numpy as np
import pytest

from llp.evaluation.recall import distance_bins, last_occurrences, recall_distances


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # Position i holds character i and has the next one as its target.
        ("abcabdab", [-1, -1, -1, 0, -1, -1, 3]),
        ("aaaa", [-1, 0, 1]),  # each next to the one before: the nearest one counts
        ("abba", [-1, -1, -1]),  # ba is not ab
        ("ab", [-1]),
        ("a", []),
    ],
)
def test_a_bigram_is_found_where_it_stood_last(text, expected):
    assert last_occurrences(np.frombuffer(text.encode(), np.uint8)).tolist() == expected


@pytest.mark.parametrize("bits", [8, 16, 31])
def test_large_tokens_are_not_mixed_up(bits):
    assert last_occurrences(np.array([1, 0, 1 << bits], np.uint32)).tolist() == [-1, -1]
    assert last_occurrences(np.array([1 << bits, 5, 0, 5, 1 << bits], np.uint32)).tolist() == [-1, -1, -1, -1]
    assert last_occurrences(np.array([1 << bits, 1, 1 << bits, 1], np.uint32)).tolist() == [-1, -1, 0]


def test_only_what_the_context_holds_counts():
    tokens = np.frombuffer(b"xyabxyaxy", np.uint8)
    whole = np.zeros(8, np.int64)
    #                                                      a  b  x  y  a  x  y  behind x y a b x y a x
    assert recall_distances(tokens, whole).tolist() == [0, 0, 0, 0, 4, 4, 0, 3]
    starts = np.array([0, 0, 0, 0, 1, 1, 1, 4])
    # From place 1 on there is no x before the y, but y before a; the x at place 4 is the first of the last context.
    assert recall_distances(tokens, starts).tolist() == [0, 0, 0, 0, 0, 4, 0, 3]
    assert recall_distances(tokens, starts + (np.arange(8) == 7))[-1] == 0


def test_the_token_that_a_document_begins_with_counts_like_any_other():
    """A line's end precedes the text `a \\n a`, so the second a completes a bigram with it again."""
    assert recall_distances(np.frombuffer(b"\na\na", np.uint8), np.zeros(3, np.int64)).tolist() == [0, 0, 2]


def test_distances_by_definition():
    rng = random.Random(0)
    for _ in range(200):
        text = [rng.randrange(4) for _ in range(rng.randrange(2, 30))]
        starts = [rng.randrange(i + 1) for i in range(len(text) - 1)]
        expected = []
        for i, start in enumerate(starts):
            found = [j for j in range(start, i) if text[j] == text[i] and text[j + 1] == text[i + 1]]
            expected.append(i - max(found) if found else 0)
        assert recall_distances(np.array(text, np.uint16), np.array(starts)).tolist() == expected


@pytest.mark.parametrize(
    ("longest", "expected"),
    [
        (1, [(1, 1)]),
        (2, [(1, 1), (2, 2)]),
        (3, [(1, 1), (2, 2), (3, 4)]),
        (4, [(1, 1), (2, 2), (3, 4)]),
        (5, [(1, 1), (2, 2), (3, 4), (5, 8)]),
        (9, [(1, 1), (2, 2), (3, 4), (5, 8), (9, 16)]),
    ],
)
def test_bins_end_at_powers_of_two(longest, expected):
    assert distance_bins(longest) == expected
