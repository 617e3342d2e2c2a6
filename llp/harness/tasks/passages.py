"""Examples from the documents of a text: whole ones, passages without their last word, and with several ways to go on.

Each function takes a .jsonl file of objects with a "text", as the harness calls it: with the `metadata` and the
`dataset_kwargs` of the task's YAML file.
"""

import json
import random
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from datasets import Dataset

from llp.errors import require


class Passage(NamedTuple):
    """A passage of a document, and the words that follow it after one space."""

    document: int
    context: str
    following: str


def whole_documents(documents: str, **_: Any) -> dict[str, Dataset]:
    """The documents as they are: `text`."""
    return _test_split([{"text": text} for text in _read(documents)])


def last_words(documents: str, n_words: int, n_examples: int, **_: Any) -> dict[str, Dataset]:
    """Passages of `n_words` words (`context`) and the next one, a word of letters alone (`word`)."""
    found = _all_passages(documents, n_words, 1, str.isalpha)
    remedy = f"no document has {n_words + 1} words, the last one of letters alone; name another text with --data"
    require(len(found) > 0, "tasks", "last_word", remedy)
    return _test_split([{"context": one.context, "word": one.following} for one in _spread(found, n_examples)])


def continuations(
    documents: str, n_words: int, n_next: int, n_choices: int, n_examples: int, **_: Any
) -> dict[str, Dataset]:
    """Passages (`context`) and `choices` of how they go on, of which the one numbered `gold` is true.

    The others follow other passages: of other documents, where there are enough.
    """
    found = _all_passages(documents, n_words, n_next, lambda words: True)
    remedy = f"the text has less than {n_choices} passages of {n_words + n_next} words; name another with --data"
    require(len(found) >= n_choices, "tasks", "continuation", remedy)
    rng = random.Random(0)
    return _test_split([_with_choices(one, found, n_choices, rng) for one in _spread(found, n_examples)])


def _with_choices(passage: Passage, found: Sequence[Passage], n_choices: int, rng: random.Random) -> dict[str, Any]:
    others = [one for one in found if one.document != passage.document]
    if len(others) < n_choices - 1:
        others = [one for one in found if one is not passage]
    choices = [one.following for one in rng.sample(others, n_choices - 1)]
    gold = rng.randrange(n_choices)
    choices.insert(gold, passage.following)
    return {"context": passage.context, "choices": choices, "gold": gold}


def _all_passages(documents: str, n_words: int, n_next: int, is_wanted: Callable[[str], bool]) -> list[Passage]:
    return [
        Passage(number, context, following)
        for number, text in enumerate(_read(documents))
        for context, following in passages(text, n_words, n_next, is_wanted)
    ]


def passages(text: str, n_words: int, n_next: int, is_wanted: Callable[[str], bool]) -> Iterator[tuple[str, str]]:
    """Passages that don't overlap: `n_words` words, and after one space `n_next` more that are wanted."""
    words = [*re.finditer(r"\S+", text)]
    first = 0
    while first + n_words + n_next <= len(words):
        begin, split = words[first].start(), words[first + n_words].start()
        end = words[first + n_words - 1].end()
        following = text[split : words[first + n_words + n_next - 1].end()]
        if text[end:split] == " " and is_wanted(following):
            yield text[begin:end], following
            first += n_words + n_next
        else:
            first += 1


def _spread(found: Sequence[Passage], n: int) -> list[Passage]:
    """At most `n` of them, evenly spread."""
    n = min(n, len(found))
    return [found[len(found) * number // n] for number in range(n)]


def _read(documents: str) -> list[str]:
    with Path(documents).open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def _test_split(rows: list[dict[str, Any]]) -> dict[str, Dataset]:
    return {"test": Dataset.from_list(rows)}


def spaced_word(example: dict[str, Any]) -> str:
    """The word of `last_words` with the space before it, which the harness puts before no target of this kind."""
    return f" {example['word']}"
