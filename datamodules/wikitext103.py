"""WikiText-103 (Merity et al., 2016), from files or from the Hub."""

import re
from collections.abc import Iterator
from itertools import chain, islice, tee
from pathlib import Path
from typing import Any, Literal

from datamodules.documents import Text, blocks_of, describe_file, hub_rows, read_text
from datamodules.text import TextDataModule

_FILES = {"train": "train", "validation": "valid", "test": "test"}
_TITLE = re.compile(r" = [^=].* = \n")


class WikiText103(TextDataModule):
    """WikiText-103. Each split is one stream of text, as in the literature, unless `articles` is set.

    A line end counts as one word, also as in the literature: the test split has 245,569 words, and the validation split
    217,646. The report also states the count without line ends. A stream begins with a newline token, because most
    lines of the text follow one; an article begins with the start token.

    Args:
        path: Folder with `wiki.{train,valid,test}.tokens` (or `.raw`). By default the text comes from the Hub.
        release: `tokens` for the benchmark's vocabulary with `<unk>`, `raw` for the original text.
        articles: Whether each article is a document, which is scored without context from other articles.
        hub_id: Name of the data set on the Hub.
        hub_revision: Branch, tag or commit of the data set.
        kwargs: Arguments of `TextDataModule`.

    Raises:
        SettingError: If a value can't be used, or if a part of the text is missing.
    """

    name = "wikitext103"
    word_count = "whitespace-separated words and line ends"

    def __init__(
        self,
        path: str | None = None,
        release: Literal["tokens", "raw"] = "tokens",
        articles: bool = False,
        hub_id: str = "Salesforce/wikitext",
        hub_revision: str = "main",
        **kwargs: Any,
    ) -> None:
        super().__init__(path, **kwargs)
        self.release, self.articles, self.hub_id, self.hub_revision = release, articles, hub_id, hub_revision
        self.hub_configuration = "wikitext-103-v1" if release == "tokens" else "wikitext-103-raw-v1"

    def count_words(self, line: str) -> int:
        return len(line.split()) + line.endswith("\n")

    def start_token(self) -> int:
        return super().start_token() if self.articles else int(self.tokenizer.encode(["\n"])[-1])

    def source(self) -> dict[str, object]:
        if self.path is None:
            name = {"hub": self.hub_id, "configuration": self.hub_configuration, "revision": self.hub_revision}
            return {**name, "articles": self.articles}
        files = {split: describe_file(self._file(split)) for split in self.splits}
        return {**files, "articles": self.articles}

    def n_bytes(self, split: str) -> int | None:
        return None if self.path is None else self._file(split).stat().st_size

    def texts(self, split: str) -> Iterator[Text]:
        if self.path is None:
            whole = Text(split, blocks_of(self._hub_lines(split)))
        else:
            whole = read_text(self._file(split), split)
        return _articles(whole) if self.articles else iter([whole])

    def _file(self, split: str) -> Path:
        assert self.path is not None
        return self.path / f"wiki.{_FILES[split]}.{self.release}"

    def _hub_lines(self, split: str) -> Iterator[str]:
        for row in hub_rows(self.hub_id, self.hub_configuration, split, self.hub_revision, columns=["text"]):
            # A row is a line. On the Hub, a blank line has lost its only space.
            yield row["text"] if row["text"].endswith("\n") else (row["text"] or " ") + "\n"


def _articles(whole: Text) -> Iterator[Text]:
    """Cut a split before each blank line that is followed by a title and another blank line."""
    article: list[str] = []
    title = ""
    lines, following, after = tee((line for block in whole.lines() for line in block), 3)
    ahead = zip(lines, chain(islice(following, 1, None), [""]), chain(islice(after, 2, None), ["", ""]), strict=False)
    for line, second, third in ahead:
        if not line.strip() and _TITLE.fullmatch(second) and not third.strip():
            if article:
                yield Text(title, blocks_of(article))
            article, title = [], second.strip(" =\n")
        article.append(line)
    yield Text(title, blocks_of(article))
