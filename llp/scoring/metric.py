"""The score of a text: nats, tokens, words and bytes, and the figures computed from them."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

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


class ScoredDocument(Protocol):
    """A document's size: `tokens` that are scored (its start token is not), `words` and `bytes` of its text.

    `words` are counted as the benchmark does, `plain_words` are separated by whitespace.
    """

    @property
    def name(self) -> str: ...
    @property
    def tokens(self) -> int: ...
    @property
    def words(self) -> int: ...
    @property
    def plain_words(self) -> int: ...
    @property
    def bytes(self) -> int: ...


def figures(nats: float, tokens: float, words: float, n_bytes: float) -> dict[str, float]:
    """The four figures of a score.

    `loss` (in nats) and `perplexity` are per token, so both depend on the tokenizer; `word_perplexity`
    = exp(nats / words) and `bits_per_byte` do not, and can be compared across tokenizers. A figure is nan if the text
    has none of what it is divided by: tokens, words or bytes.
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
        official_words: The benchmark's official number of words in the split; None: the sum over the documents.
    """

    full_state_update = False
    nats: Tensor
    tokens: Tensor

    def __init__(self, documents: Sequence[ScoredDocument], official_words: int | None = None) -> None:
        super().__init__()
        self.documents, self.official_words = documents, official_words
        self.add_state("nats", torch.zeros(len(documents), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("tokens", torch.zeros(len(documents), dtype=torch.int64), dist_reduce_fx="sum")

    def add(self, model: Any, batch: ScoringBatch) -> None:
        """Score a batch with a `LanguageModel`."""
        self.update(model.score_nats(batch), batch.documents)

    def update(self, nats: Tensor, documents: Tensor) -> None:
        """Add the loss of each scored token, `nats` (B, S), to the documents (B,) that the windows belong to."""
        self.nats.index_add_(0, documents, nats.double().sum(dim=1))
        self.tokens.index_add_(0, documents, torch.full_like(documents, nats.shape[1]))

    def compute(self) -> tuple[list[float], list[int]]:
        """Nats and scored tokens of each document, over all ranks."""
        return self.nats.tolist(), self.tokens.tolist()

    def scored(self) -> tuple[int, int]:
        """How many tokens were scored, over all ranks, and how many the split has."""
        return sum(self.compute()[1]), sum(document.tokens for document in self.documents)

    def total(self) -> dict[str, float]:
        """The figures of the whole split, over all ranks."""
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
                **figures(row["nats"], row["tokens"], row["words"], row["bytes"]),
                "plain_word_perplexity": _exp(_ratio(row["nats"], row["plain_words"])),
            }
            for row in rows
        ]


def _scored_size(document: ScoredDocument, tokens: int, nats: float) -> dict[str, float]:
    sizes = {"words": document.words, "plain_words": document.plain_words, "bytes": document.bytes}
    if tokens != document.tokens:
        sizes = {name: round(size * tokens / document.tokens) for name, size in sizes.items()}
    return {"tokens": tokens, **sizes, "nats": nats}


def _sum(sizes: list[dict[str, float]]) -> dict[str, float]:
    return {
        key: math.fsum(size[key] for size in sizes) if key == "nats" else sum(size[key] for size in sizes)
        for key in sizes[0]
    }
