"""Python's reference documentation, a text that every Python carries: the default that needs no download."""

import platform
from collections.abc import Iterator
from pydoc_data.topics import topics
from typing import Any

from datamodules.documents import Text, blocks_of
from datamodules.text import TextDataModule


class PythonReference(TextDataModule):
    """The topics of `pydoc_data` (half a megabyte in Python 3.11): one document per topic.

    In the order of their names, the topics 1, 11, 21, ... are for validation, and 6, 16, 26, ... for the test. Topics
    share passages, so a paragraph that is in the test split is left out of the others, and one in the validation split
    is left out of training. The text is that of the Python that runs; `data_fingerprint` tells which.

    Its arguments are those of `TextDataModule`; it takes no `path`.
    """

    name = "python_reference"

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(path=None, **kwargs)

    def source(self) -> dict[str, Any]:
        return {"python": platform.python_version()}

    def texts(self, split: str) -> Iterator[Text]:
        names = sorted(topics)
        members = {
            "test": names[5::10],
            "validation": names[::10],
            "train": [name for number, name in enumerate(names) if number % 5],
        }
        held_out: set[str] = set()
        for held_out_split in ("test", "validation"):
            if held_out_split == split:
                break
            held_out.update(paragraph for name in members[held_out_split] for paragraph in _paragraphs(topics[name]))
        for name in members[split]:
            kept = [paragraph for paragraph in _paragraphs(topics[name]) if paragraph not in held_out]
            text = "\n\n".join(kept) + "\n"
            yield Text(name, blocks_of([text]))


def _paragraphs(text: str) -> list[str]:
    return [paragraph for paragraph in text.strip("\n").split("\n\n") if paragraph.strip()]
