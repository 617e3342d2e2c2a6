"""A training window as a model reads it: what is read, what has a loss, and what that costs."""

from typing import Any, NamedTuple


class TrainingWindow(NamedTuple):
    """Numbers of tokens of one training window."""

    burn_in: int
    """Read before it, without a loss."""
    length: int
    """n, those of the window itself."""
    n_trained: int
    """With a loss: its labels, or all at which the architecture can have one."""
    has_labels: bool
    """Whether the loss is at labels, which may be anywhere in the window."""

    @property
    def n_read(self) -> int:
        return self.burn_in + self.length

    @property
    def n_last(self) -> int | None:
        """So many of the last positions are all that the layers must compute; None: any may be needed."""
        return None if self.has_labels else self.length

    def flops(self, decoder: Any) -> int:
        """FLOPs of a training step on one window: the backward pass takes twice the forward pass."""
        return 3 * decoder.flops(self.n_read, self.n_trained, self.n_last)


def training_window(model: Any, data: Any) -> TrainingWindow:
    """The training window of a data module to a `LanguageModel` whose decoder is built."""
    burn_in, n_labels = model.geometry.burn_in_len(data.burn_in), data.labels_per_window
    n_trained = n_labels or min(data.window_len, model.geometry.positions_out(burn_in + data.window_len))
    return TrainingWindow(burn_in, data.window_len, n_trained, n_labels is not None)
