"""`llp prepare`: the tokenizer and the tokens alone, on a login node say."""

from datamodules.base import LanguageDataModule
from datamodules.text import TextDataModule
from llp.commands.parser import parser_for_part
from llp.evaluation.tables import aligned


def run(options: list[str]) -> None:
    """Train the tokenizer and encode the text, if there is any. Models and trainers that a file names are not built."""
    parser = parser_for_part("prepare", "Train the tokenizer and encode the text, once per machine.", {"data"})
    parser.add_lightning_class_args(LanguageDataModule, "data", subclass_mode=True)
    data = parser.instantiate(parser.parse_args(options)).data
    if not isinstance(data, TextDataModule):
        print(f"{type(data).__name__}: nothing to prepare, its windows are drawn when they are needed")
        return
    data.prepare_data()
    data.setup("fit")
    table = [["split", "documents", "words", "bytes", "tokens", "tokens/word", "bytes/token"]]
    for split, file in data.files.items():
        sizes = [sum(getattr(d, size) for d in file.documents) for size in ("words", "bytes", "tokens")]
        words, n_bytes, tokens = sizes
        cells = [f"{size:,}" for size in (len(file.documents), *sizes)]
        table.append([split, *cells, f"{tokens / max(1, words):.3f}", f"{n_bytes / tokens:.3f}"])
    print("\n".join(aligned(table, n_left=1)))
    print(f"Prepared in {data.prepared_folder()}")
