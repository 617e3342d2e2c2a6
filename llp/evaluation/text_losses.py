"""The loss of every token of a given text."""

from typing import NamedTuple

import torch

from llp.scoring.windows import scoring_windows
from llp.text_model import TextModel


class TokenLoss(NamedTuple):
    """A token's text and its loss in nats; each token of a multi-token character reads as U+FFFD."""

    text: str
    nats: float


@torch.inference_mode()
def text_losses(model: TextModel, text: str) -> list[TokenLoss]:
    """Score a text like a benchmark's document: every token exactly once, in the model's scoring windows.

    Args:
        model: The model with its tokenizer, in evaluation mode.
        text: Any string.
    """
    tokens = model.tokens(text)  # (1, N + 1)
    losses: list[TokenLoss] = []
    for window in scoring_windows(0, tokens.shape[1] - 1, *model.window):
        piece = tokens[:, window.start : window.stop + 1]
        targets = piece[:, piece.shape[1] - window.n_scored :]  # (1, S)
        nats = model.module.decoder(piece[:, :-1], targets).each[0].double().tolist()
        pairs = zip(targets[0].tolist(), nats, strict=True)
        losses += [TokenLoss(model.tokenizer.decode([token]), loss) for token, loss in pairs]
    return losses
