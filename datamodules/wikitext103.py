"""WikiText-103 (Merity et al., 2016), from its files or from the Hub."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from datamodules.text import Text, TextDataModule
from datamodules.text_files import describe_file, read_lines
from llp.errors import SettingError

_FILES = {"train": "train", "validation": "valid", "test": "test"}


class WikiText103(TextDataModule):
    """WikiText-103: each split one stream of text, as in the literature.

    A line's end counts as one word, also as in the literature: 245,569 words in the test split and 217,646 in the
    validation split. The token before the stream is a newline, which the text is full of.

    Args:
        path: Folder with `wiki.{train,valid,test}.tokens` (or `.raw`); without it the Hub is the source.
        release: `tokens` has the benchmark's own vocabulary with `<unk>`, `raw` the text before that.
        hub_id: Data set on the Hub.
        hub_revision: Its branch, tag or commit.
        kwargs: The arguments of `TextDataModule`.

    Raises:
        SettingError: If a value can't be used, or a part of the text is missing.
    """

    name = "wikitext103"
    word_count = "whitespace-separated words and line ends"

    def __init__(
        self,
        path: str | None = None,
        release: Literal["tokens", "raw"] = "tokens",
        hub_id: str = "Salesforce/wikitext",
        hub_revision: str = "main",
        **kwargs: Any,
    ) -> None:
        super().__init__(path, **kwargs)
        self.release, self.hub_id, self.hub_revision = release, hub_id, hub_revision
        self.hub_configuration = "wikitext-103-v1" if release == "tokens" else "wikitext-103-raw-v1"

    def count_words(self, line: str) -> int:
        return len(line.split()) + line.endswith("\n")

    def start_token(self) -> int:
        return int(self.tokenizer.encode(["\n"])[-1])

    def source(self) -> dict[str, Any]:
        if self.path is None:
            return {"hub": self.hub_id, "configuration": self.hub_configuration, "revision": self.hub_revision}
        return {split: describe_file(self._file(split), split) for split in self.splits}

    def texts(self, split: str) -> Iterator[Text]:
        yield Text(split, self._hub_lines(split) if self.path is None else read_lines(self._file(split)))

    def _file(self, split: str) -> Path:
        assert self.path is not None
        return self.path / f"wiki.{_FILES[split]}.{self.release}"

    def _hub_lines(self, split: str) -> Iterator[str]:
        import datasets  # takes seconds, and only the Hub needs it

        try:
            rows = datasets.load_dataset(self.hub_id, self.hub_configuration, split=split, revision=self.hub_revision)
        except (OSError, ValueError, datasets.exceptions.DatasetNotFoundError) as error:
            reason = str(error).splitlines()[0]
            raise SettingError(
                "data.init_args.hub_id",
                self.hub_id,
                f"the Hub did not give {self.hub_configuration} at revision {self.hub_revision} ({reason}); "
                "name a local copy with data.init_args.path, or run where there is a network",
            ) from error
        for row in rows:
            # A row is a line; the Hub leaves out the one space of a blank line.
            yield row["text"] if row["text"].endswith("\n") else (row["text"] or " ") + "\n"
