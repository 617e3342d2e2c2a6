"""Benchmarks and tasks as LightningDataModules.

A benchmark's text is encoded once and stored on disk; training and scoring windows are cut from its tokens. The windows
of a task are generated at random.
"""

from datamodules.mirrored_copy import MirroredCopy
from datamodules.pg19 import PG19
from datamodules.python_texts import PythonReference, PythonSource
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
    "PythonSource",
    "SentencePiece",
    "TextFiles",
    "WikiText103",
]
