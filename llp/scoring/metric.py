"""The score of a text: nats, tokens, words and bytes, and the metrics computed from them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict

import torch
from torch import Tensor
from torchmetrics import Metric


class ScoringBatch(NamedTuple):
    """Windows of equal length that score equally many positions, as a scoring loader yields them.

    `inputs` is (B, N); `targets` (B, S) are the tokens after the last S inputs; `documents` (B,) holds the number of
    the document that each window belongs to.
    """

    inputs: Tensor
    targets: Tensor
    documents: Tensor


class TextProtocol(TypedDict):
    """How a text is scored, for its report."""

    data_fingerprint: str
    tokenizer_fingerprint: str
    window_len: int
    stride: int
    word_count: str
    """What counts as a word."""
    official_words: int | None


@dataclass(frozen=True)
class Document:
    """A document in a token file: its start token is at `start`, followed by its `tokens`.

    `words` are counted as the benchmark does, `plain_words` are separated by whitespace, `bytes` are those of UTF-8.
    `sha256` is that of the text, `tokens_sha256` that of the tokens in the file, including the start token.
    """

    name: str
    start: int
    tokens: int
    words: int
    plain_words: int
    bytes: int
    sha256: str
    tokens_sha256: str


def metrics(nats: float, tokens: float, words: float, n_bytes: float) -> dict[str, float]:
    """The four metrics of a score.

    `loss` (in nats) and `perplexity` are per token, so both depend on the tokenizer; `word_perplexity`
    = exp(nats / words) and `bits_per_byte` do not, and can be compared across tokenizers. A metric is nan if its
    denominator (tokens, words or bytes) is zero.
    """
    return {
        "loss": _ratio(nats, tokens),
        "perplexity": _exp(_ratio(nats, tokens)),
        "word_perplexity": _exp(_ratio(nats, words)),
        "bits_per_byte": _ratio(nats, n_bytes) / math.log(2),
    }


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else math.nan


def _exp(x: float) -> float:
    return math.inf if x >= 700 else math.exp(x)


class Score(Metric):
    """Total nats and tokens of each document, summed in float64 over batches and ranks.

    Args:
        documents: The documents of the split; windows refer to them by index.
        official_words: The benchmark's official number of words in the split, or None for the sum over the documents.
    """

    full_state_update = False
    nats: Tensor
    tokens: Tensor

    def __init__(self, documents: Sequence[Document], official_words: int | None = None) -> None:
        super().__init__()
        self.documents, self.official_words = documents, official_words
        self.add_state("nats", torch.zeros(len(documents), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros(len(documents), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, nats: Tensor, batch: ScoringBatch) -> None:
        """Add the loss of each target of a batch, `nats` (B, S), to the windows' documents."""
        self.nats.index_add_(0, batch.documents, nats.double().sum(dim=1))
        self.tokens.index_add_(0, batch.documents, torch.full_like(batch.documents, nats.shape[1]))

    def compute(self) -> tuple[list[float], list[int]]:
        """Nats and scored tokens of each document, over all ranks."""
        return self.nats.tolist(), self.tokens.tolist()

    def scored(self) -> tuple[int, int]:
        """Number of scored tokens over all ranks, and of all tokens in the split."""
        return sum(self.compute()[1]), sum(document.tokens for document in self.documents)

    def total(self) -> dict[str, float]:
        """The metrics of the whole split, over all ranks."""
        row = self.rows()[0]
        return {name: row[name] for name in ("loss", "perplexity", "word_perplexity", "bits_per_byte")}

    def rows(self) -> list[dict[str, Any]]:
        """One row for the whole split (`document` None) and one for each document, if there are several.

        If not all tokens were scored (a limited number of batches), words and bytes are scaled in proportion.
        """
        nats, tokens = self.compute()
        sizes = [
            _scored_size(document, scored, total)
            for document, scored, total in zip(self.documents, tokens, nats, strict=True)
        ]
        whole = _sum(sizes)
        if self.official_words is not None and tokens == [document.tokens for document in self.documents]:
            whole["words"] = self.official_words
        rows: list[dict[str, Any]] = [{"document": None, **whole}]
        if len(sizes) > 1:
            rows += [{"document": document.name, **size} for document, size in zip(self.documents, sizes, strict=True)]
        return [
            {
                **row,
                **metrics(row["nats"], row["tokens"], row["words"], row["bytes"]),
                "plain_word_perplexity": _exp(_ratio(row["nats"], row["plain_words"])),
            }
            for row in rows
        ]


def _scored_size(document: Document, tokens: int, nats: float) -> dict[str, float]:
    sizes = {"words": document.words, "plain_words": document.plain_words, "bytes": document.bytes}
    if tokens != document.tokens:
        sizes = {name: round(size * tokens / document.tokens) for name, size in sizes.items()}
    return {"tokens": tokens, **sizes, "nats": nats}


def _sum(sizes: list[dict[str, float]]) -> dict[str, float]:
    return {
        key: math.fsum(size[key] for size in sizes) if key == "nats" else sum(size[key] for size in sizes)
        for key in sizes[0]
    }


class MeanLoss(Metric):
    """The mean loss of all targets that any loader yields, summed in float64 over batches and ranks."""

    full_state_update = False
    nats: Tensor
    tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("nats", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, nats: Tensor) -> None:
        """Add the loss of each target of a batch, `nats` (B, S)."""
        self.nats += nats.double().sum()
        self.tokens += nats.numel()

    def compute(self) -> tuple[float, int]:
        """Nats and targets, over all ranks."""
        return float(self.nats), int(self.tokens)

    def scored(self) -> tuple[int, int]:
        """Number of scored targets over all ranks, given twice, because the loader does not say how many there are."""
        return self.compute()[1], self.compute()[1]

    def total(self) -> dict[str, float]:
        """Loss in nats per token, and perplexity."""
        loss = _ratio(*self.compute())
        return {"loss": loss, "perplexity": _exp(loss)}
