"""Tokenizers. Decoding the tokens of a text returns the text exactly."""

from datamodules.tokenizers.bytes import Bytes
from datamodules.tokenizers.hugging_face import HuggingFaceTokenizer
from datamodules.tokenizers.sentence_piece import SentencePiece
from datamodules.tokenizers.tokenizer import Tokenizer

__all__ = ["Bytes", "HuggingFaceTokenizer", "SentencePiece", "Tokenizer"]
