"""The score of a task whose windows have labels at some positions alone: how many are known, by distance."""

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric


class LabelBatch(NamedTuple):
    """Windows that are scored at their labels alone, as a loader of examples yields them.

    `inputs` is (B, N); `places` (B, K) are the positions that predict the `labels` (B, K). A label repeats a token of
    the window; `distances` (B, K) are those from the label, which follows its place, back to that token: the token at
    position i is predicted at p from a distance of p + 1 - i. A position that reads c tokens, itself included, sees it
    if the distance is c or less.
    """

    inputs: Tensor
    places: Tensor
    labels: Tensor
    distances: Tensor


class LabelScore(Metric):
    """Labels, correct predictions and nats by distance, summed over batches and ranks.

    Those whose token lies beyond the reach of the model are counted apart: of these it can know no more than a guess.

    Args:
        window_len: N, the length of a window.
        n_labels: Labels of the whole split.
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

    def add(self, model: Any, batch: LabelBatch) -> None:
        """Score a batch with a `LanguageModel`."""
        logits = model.decoder(batch.inputs, places=batch.places)  # (B, K, vocab_size)
        context = model.geometry.context_lens(batch.inputs.shape[1]).to(logits.device)[batch.places]  # (B, K)
        self.update(logits, batch.labels, batch.distances, batch.distances > context)

    def update(self, logits: Tensor, labels: Tensor, distances: Tensor, beyond: Tensor) -> None:
        """Add predictions `logits` (B, K, vocab_size) of `labels` (B, K), and whether each lies `beyond` reach."""
        logits, labels = logits.flatten(0, 1), labels.flatten()  # (R, vocab_size), (R,)
        exact = torch.promote_types(logits.dtype, torch.float32)
        nats = F.cross_entropy(logits.to(exact), labels, reduction="none").double()  # (R,)
        correct = (logits.argmax(dim=1) == labels).long()
        where = (beyond * self.labels.shape[1] + distances).flatten()
        for state, counts in ((self.labels, torch.ones_like(labels)), (self.correct, correct), (self.nats, nats)):
            state.view(-1).index_add_(0, where, counts)

    def compute(self) -> tuple[Tensor, Tensor, Tensor]:
        """Labels, correct ones and nats over all ranks, (2, N + 1) each: within and beyond reach, by distance."""
        return self.labels, self.correct, self.nats

    def scored(self) -> tuple[int, int]:
        """How many labels were scored, over all ranks, and how many the split has."""
        return int(self.compute()[0].sum()), self.n_labels

    def total(self) -> dict[str, float]:
        """The figures of the whole split, over all ranks: loss in nats per label, and accuracy."""
        row = self.row()
        return {"loss": row["loss"], "accuracy": row["accuracy"]}

    def row(self) -> dict[str, Any]:
        """Counts and figures of the whole split."""
        sums = [state.sum() for state in self.compute()]
        labels, correct, nats = int(sums[0]), int(sums[1]), float(sums[2])
        return {"labels": labels, "correct": correct, "nats": nats, **label_figures(labels, correct, nats)}

    def beyond_reach(self) -> dict[str, int]:
        """How many labels repeat a token that the model can't read, and how many of them are predicted correctly."""
        labels, correct, _ = (int(state[1].sum()) for state in self.compute())
        return {"labels": labels, "correct": correct}

    def distances(self, width: int) -> list[dict[str, Any]]:
        """Counts by distance in bins 1 .. width, width + 1 .. 2 width and so on; those without labels are left out."""
        labels, correct, nats = (state.sum(dim=0)[1:].split(width) for state in self.compute())
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


def label_figures(labels: int, correct: int, nats: float) -> dict[str, float]:
    """Loss in nats per label and the share that is correct; nan if there are none."""
    if labels == 0:
        return {"loss": math.nan, "accuracy": math.nan}
    return {"loss": nats / labels, "accuracy": correct / labels}
