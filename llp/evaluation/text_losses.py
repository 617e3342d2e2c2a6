"""The loss of every token of a given text."""

from typing import Any, NamedTuple

import torch

from llp.evaluation.windows import scoring_windows


class TokenLoss(NamedTuple):
    """A token's text and its loss in nats; each token of a multi-token character reads as U+FFFD."""

    text: str
    nats: float


@torch.inference_mode()
def text_losses(model: Any, text: str) -> list[TokenLoss]:
    """Score a text like a benchmark's document: every token exactly once, in the model's scoring windows.

    Args:
        model: A `LanguageModel` with its tokenizer, in evaluation mode.
        text: Any string.
    """
    tokens = model.tokens(text)  # (1, N + 1)
    losses: list[TokenLoss] = []
    for window in scoring_windows(0, tokens.shape[1] - 1, *model.text_window):
        piece = tokens[:, window.start : window.stop + 1]
        targets = piece[:, piece.shape[1] - window.n_scored :]  # (1, S)
        nats = model.decoder(piece[:, :-1], targets).each[0].double().tolist()
        pairs = zip(targets[0].tolist(), nats, strict=True)
        losses += [TokenLoss(model.tokenizer.decode([token]), loss) for token, loss in pairs]
    return losses
