"""The examples of the tasks that come with this project: passages of a text, as it stands there."""

import json
import re

import pytest

from llp.errors import SettingError
from llp.harness.tasks import passages

TEXT = "one two  three four five six. seven eight\nnine ten eleven twelve thirteen"


@pytest.fixture
def documents(tmp_path):
    """Three documents, whose words say where they stand."""
    path = tmp_path / "documents.jsonl"
    texts = [" ".join(f"d{number}w{word}" for word in range(50)) for number in range(3)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*texts, "", "[1]"]))
    return str(path)


@pytest.mark.parametrize(
    ("n_words", "n_next", "expected"),
    [
        # Neither is behind two spaces or a line end, nor holds a full stop.
        (1, 1, ["one|two", "three|four", "six.|seven", "nine|ten", "eleven|twelve"]),
        (2, 1, ["two  three|four", "five six.|seven", "eight\nnine|ten", "eleven twelve|thirteen"]),
        (5, 1, ["two  three four five six.|seven", "eight\nnine ten eleven twelve|thirteen"]),
        (12, 1, ["one two  three four five six. seven eight\nnine ten eleven twelve|thirteen"]),
        (13, 1, []),
    ],
)
def test_passages_are_the_text_and_do_not_overlap(n_words, n_next, expected):
    found = ["|".join(parts) for parts in passages.passages(TEXT, n_words, n_next, str.isalpha)]
    assert found == expected
    assert all(one.replace("|", " ") in TEXT for one in found)


def test_passages_go_on_with_several_words():
    found = list(passages.passages(TEXT, 4, 2, lambda words: True))
    assert found == [("one two  three four", "five six."), ("seven eight\nnine ten", "eleven twelve")]


def test_whole_documents_are_what_was_written(documents):
    texts = passages.whole_documents(documents, version=1)["test"]["text"]
    assert [len(text.split()) for text in texts] == [50, 50, 50, 0, 1]
    assert texts[4] == "[1]"


def test_last_words_are_spread_over_the_text(tmp_path, documents):
    path = tmp_path / "letters.jsonl"
    path.write_text(json.dumps({"text": " ".join("abcdefghijklmnop")}))
    rows = list(passages.last_words(str(path), n_words=3, n_examples=2)["test"])
    assert rows == [{"context": "a b c", "word": "d"}, {"context": "i j k", "word": "l"}]
    assert passages.spaced_word(rows[0]) == " d"
    with pytest.raises(SettingError, match=r"tasks = last_word: no document has 4 words, the last one of letters"):
        passages.last_words(documents, n_words=3, n_examples=2)


def test_choices_hold_the_truth_once_and_words_of_other_documents(documents):
    rows = list(passages.continuations(documents, n_words=3, n_next=2, n_choices=4, n_examples=100)["test"])
    assert len(rows) == 30
    for row in rows:
        *_, last = row["context"].split()
        document, word = map(int, re.fullmatch(r"d(\d)w(\d+)", last).groups())
        true = f"d{document}w{word + 1} d{document}w{word + 2}"
        assert row["choices"][row["gold"]] == true
        others = [choice for choice in row["choices"] if choice != true]
        assert len(set(others)) == 3
        assert not any(choice.startswith(f"d{document}") for choice in others)
    assert len({row["gold"] for row in rows}) == 4
    assert rows == list(passages.continuations(documents, n_words=3, n_next=2, n_choices=4, n_examples=100)["test"])


def test_a_text_of_one_document_gives_choices_of_its_own(tmp_path):
    path = tmp_path / "one.jsonl"
    path.write_text(json.dumps({"text": " ".join(f"w{word}" for word in range(20))}))
    rows = list(passages.continuations(str(path), n_words=3, n_next=2, n_choices=4, n_examples=9)["test"])
    assert [len(set(row["choices"])) for row in rows] == [4] * 4
    with pytest.raises(SettingError, match=r"continuation: the text has less than 5 passages of 5 words"):
        passages.continuations(str(path), n_words=3, n_next=2, n_choices=5, n_examples=9)
