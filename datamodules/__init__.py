"""Benchmarks as LightningDataModules: text -> tokens on disk -> training and scoring windows."""

from datamodules.python_reference import PythonReference
from datamodules.tokenizers import Bytes, SentencePiece
from datamodules.wikitext103 import WikiText103

__all__ = ["Bytes", "PythonReference", "SentencePiece", "WikiText103"]
