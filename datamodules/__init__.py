"""Benchmarks as LightningDataModules: text -> tokens on disk -> training and scoring windows."""

from datamodules.pg19 import PG19
from datamodules.python_reference import PythonReference
from datamodules.python_source import PythonSource
from datamodules.text_files import TextFiles
from datamodules.tokenizers import Bytes, HuggingFaceTokenizer, SentencePiece
from datamodules.wikitext103 import WikiText103

__all__ = [
    "PG19",
    "Bytes",
    "HuggingFaceTokenizer",
    "PythonReference",
    "PythonSource",
    "SentencePiece",
    "TextFiles",
    "WikiText103",
]
