"""Benchmarks and tasks as LightningDataModules.

A benchmark: text -> tokens on disk -> training and scoring windows. A task: windows that are drawn.
"""

from datamodules.mirrored_copy import MirroredCopy
from datamodules.pg19 import PG19
from datamodules.python_reference import PythonReference
from datamodules.recall import AssociativeRecall
from datamodules.text_files import TextFiles
from datamodules.tokenizers import Bytes, HuggingFaceTokenizer, SentencePiece
from datamodules.wikitext103 import WikiText103

__all__ = [
    "PG19",
    "AssociativeRecall",
    "Bytes",
    "HuggingFaceTokenizer",
    "MirroredCopy",
    "PythonReference",
    "SentencePiece",
    "TextFiles",
    "WikiText103",
]
