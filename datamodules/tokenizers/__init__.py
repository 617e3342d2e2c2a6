"""Tokenizers: text to tokens and back, every string exactly. A tokenizer is made once, on the training split."""

from datamodules.tokenizers.bytes import Bytes
from datamodules.tokenizers.hugging_face import HuggingFaceTokenizer
from datamodules.tokenizers.sentence_piece import SentencePiece
from datamodules.tokenizers.tokenizer import Tokenizer

__all__ = ["Bytes", "HuggingFaceTokenizer", "SentencePiece", "Tokenizer"]
