"""`llp prepare`: the tokenizer and the tokens alone, on a login node, say."""

from datamodules.base import LanguageDataModule
from datamodules.text import TextDataModule
from llp.evaluation.tables import aligned


def prepare(data: LanguageDataModule) -> None:
    """Train the tokenizer and encode the text. Models and trainers in a configuration are ignored.

    Args:
        data: The data module of a text.
    """
    if not isinstance(data, TextDataModule):
        print(f"{type(data).__name__}: nothing to prepare, its windows are drawn when they are needed")
        return
    data.prepare_data()
    data.setup("fit")
    table = [["split", "documents", "words", "bytes", "tokens", "tokens/word", "bytes/token"]]
    for split, file in data.files.items():
        words, n_bytes, tokens = (
            sum(getattr(d, size) for d in file.documents) for size in ("words", "bytes", "tokens")
        )
        cells = [f"{size:,}" for size in (len(file.documents), words, n_bytes, tokens)]
        table.append([split, *cells, f"{tokens / max(1, words):.3f}", f"{n_bytes / tokens:.3f}"])
    print("\n".join(aligned(table, n_left=1)))
    print(f"Prepared in {data.prepared_folder()}")
