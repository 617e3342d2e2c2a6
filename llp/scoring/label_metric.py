"""The score of a task whose windows have labels at some positions only: accuracy and loss by distance."""

import math
from typing import Any, NamedTuple, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric


class LabelBatch(NamedTuple):
    """Windows that are only scored at their labels, as a loader of examples yields them.

    `inputs` is (B, N); the `labels` (B, K) are predicted at `positions` (B, K). A label repeats a token of the window.
    `distances` (B, K) are counted from the label back to that token. A label follows its position, so the distance is
    p + 1 - i if the token at position i is predicted at p. `beyond` (B, K) says whether the token is beyond the model's
    reach: a position that reads c tokens, itself included, sees distances up to c.
    """

    inputs: Tensor
    positions: Tensor
    labels: Tensor
    distances: Tensor
    beyond: Tensor


class LabelProtocol(TypedDict):
    """How a task is scored, for its report."""

    data_fingerprint: str
    tokenizer_fingerprint: None
    window_len: int
    stride: int
    labels_per_window: int
    answers: int
    """Number of tokens that are equally likely to be the label if nothing of the window has been read."""
    candidates: int
    """Least number of tokens that are equally likely to be the label if all but its source has been read."""
    distance_bin: int


class LabelScore(Metric):
    """Labels, correct predictions and nats by distance, summed over batches and ranks.

    Labels whose token is beyond the model's reach are counted separately: the model can only guess them.

    Args:
        window_len: N, the length of a window.
        n_labels: Number of labels in the whole split.
    """

    full_state_update = False
    labels: Tensor
    correct: Tensor
    nats: Tensor

    def __init__(self, window_len: int, n_labels: int) -> None:
        super().__init__()
        self.n_labels = n_labels
        shape = (2, window_len + 1)  # within and beyond reach; by distance
        self.add_state("labels", torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("correct", torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("nats", torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, logits: Tensor, batch: LabelBatch) -> None:
        """Add the predictions of a batch's labels, `logits` (B, K, vocab_size)."""
        logits, labels = logits.flatten(0, 1), batch.labels.flatten()  # (R, vocab_size), (R,)
        exact = torch.promote_types(logits.dtype, torch.float32)
        nats = F.cross_entropy(logits.to(exact), labels, reduction="none").double()  # (R,)
        correct = (logits.argmax(dim=1) == labels).long()
        where = (batch.beyond * self.labels.shape[1] + batch.distances).flatten()
        for state, counts in ((self.labels, torch.ones_like(labels)), (self.correct, correct), (self.nats, nats)):
            state.view(-1).index_add_(0, where, counts)

    def compute(self) -> tuple[Tensor, Tensor, Tensor]:
        """Labels, correct predictions and nats over all ranks: (2, N + 1), within and beyond reach, by distance."""
        return self.labels, self.correct, self.nats

    def scored(self) -> tuple[int, int]:
        """Number of scored labels over all ranks, and of all labels in the split."""
        return int(self.compute()[0].sum()), self.n_labels

    def total(self) -> dict[str, float]:
        """The metrics of the whole split, over all ranks: loss in nats per label, and accuracy."""
        row = self.row()
        return {"loss": row["loss"], "accuracy": row["accuracy"]}

    def row(self) -> dict[str, Any]:
        """Counts and metrics of the whole split."""
        sums = [state.sum() for state in self.compute()]
        labels, correct, nats = int(sums[0]), int(sums[1]), float(sums[2])
        return {"labels": labels, "correct": correct, "nats": nats, **label_metrics(labels, correct, nats)}

    def beyond_reach(self) -> dict[str, int]:
        """Number of labels whose token is beyond reach, and how many of them are predicted correctly."""
        labels, correct, _ = (int(state[1].sum()) for state in self.compute())
        return {"labels": labels, "correct": correct}

    def distances(self, width: int) -> list[dict[str, Any]]:
        """Counts by distance in bins 1 .. width, width + 1 .. 2 width and so on, without bins that have no labels."""
        labels, correct, nats = (torch.split(state.sum(dim=0)[1:], width) for state in self.compute())
        return [
            {
                "first": number * width + 1,
                "last": (number + 1) * width,
                "labels": int(labels[number].sum()),
                "correct": int(correct[number].sum()),
                "nats": float(nats[number].sum()),
            }
            for number in range(len(labels))
            if labels[number].any()
        ]


def label_metrics(labels: int, correct: int, nats: float) -> dict[str, float]:
    """Loss in nats per label and accuracy, or nan if there are no labels."""
    if labels == 0:
        return {"loss": math.nan, "accuracy": math.nan}
    return {"loss": nats / labels, "accuracy": correct / labels}
