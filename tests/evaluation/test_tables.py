"""Figures as people read them."""

import math

import pytest

from llp.evaluation.tables import format_table, readable


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1_234_567, "1,234,567"),
        (12_000_000_000, "12,000,000,000"),  # a count is exact
        (3.57416, "3.5742"),
        (3_612_321.7625, "3,612,321.7625"),
        (999_999_999.0, "999,999,999.0000"),
        (1e9, "1.0e9"),
        (1.84e33, "1.8e33"),
        (9.97e300, "1.0e301"),
        (math.inf, "inf"),
        (math.nan, "nan"),
    ],
)
def test_figures_of_any_size_are_short(value, text):
    assert readable(value) == text


PROTOCOL = {"architecture": "llp.LLP", "window_len": 64, "stride": 32, "word_count": "words", "complete": True}


def rows(n_documents):
    sizes = {"split": "test", "tokens": 1000, "words": 300, "plain_words": 300, "bytes": 4000}
    figures = {"loss": 2.0, "perplexity": math.e**2, "word_perplexity": math.e**90, "bits_per_byte": 0.7}
    names = [None, *(f"document {number}" for number in range(n_documents))]
    return [{**sizes, **figures, **unigram(figures), "document": name} for name in names]


def unigram(figures):
    return {f"unigram_{name}": 2 * value for name, value in figures.items()}


@pytest.mark.parametrize(
    ("n_documents", "n_shown", "n_more"), [(0, 0, 0), (9, 9, 0), (10, 10, 0), (11, 10, 1), (99, 10, 89)]
)
def test_the_table_shows_ten_documents_and_says_where_the_others_are(n_documents, n_shown, n_more):
    text = format_table(rows(n_documents), PROTOCOL)
    assert [f"document {number} " in text for number in range(n_documents)] == [True] * n_shown + [False] * n_more
    assert (f"\n… and {n_more} more in test.csv\n" in text) == (n_more > 0)
    assert ("more in" in text) == (n_more > 0)


def test_columns_are_aligned():
    """Numbers end, and names begin, where the head of their column does, whatever their size."""
    table = rows(2)
    table[0]["tokens"], table[2]["word_perplexity"], table[1]["perplexity"] = 123_456_789, 7.0, math.inf
    head, rule, *lines = format_table(table, PROTOCOL).splitlines()[:8]
    assert rule == "-" * len(head)
    ends = [head.index(name) + len(name) for name in ("loss", "perplexity ", "word_perplexity", "bits_per_byte")]
    for line in lines:
        assert len(line) == len(head)
        for end in (ends[0], ends[2], ends[3]):
            assert line[end - 1] != " "
            assert line[end : end + 1] in ("", " ")
    assert lines[0].index("(all)") == lines[2].index("document 0") == head.index("document")


def test_a_part_is_not_called_all():
    text = format_table(rows(2), PROTOCOL | {"complete": False})
    assert "(part)" in text
    assert "(all)" not in text


def test_documents_of_which_nothing_was_scored_are_left_out():
    table = rows(12)
    table[1]["tokens"] = 0
    text = format_table(table, PROTOCOL | {"complete": False})
    assert [f"document {number} " in text for number in range(12)] == [False] + [True] * 10 + [False]
    assert "… and 1 more in test.csv" in text
