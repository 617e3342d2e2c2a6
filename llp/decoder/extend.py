"""A text read piece by piece, each position predicted from the window that would score it.

Inside of a window the first latent stands where it does in the full window, so that nothing that was computed changes
as the window fills. Only when the window moves on is its part of the text read anew.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from llp.decoder.kv_cache import Memory
from llp.scoring.windows import window_start

_PIECE_LEN = 4096  # positions at a time of a window without end, so that memory doesn't grow with a long text


@torch.inference_mode()
def extend(model: Any, tokens: Tensor, memory: Memory, n_logits: int | None) -> Tensor:
    """Logits of the token after each of the next tokens of a text, (B, n, vocab_size); see `LanguageModel.extend`."""
    logits, n_wanted = [], tokens.shape[1] if n_logits is None else n_logits
    while tokens.shape[1]:
        place, n_left = _window_at(model, memory)
        piece, tokens = tokens[:, :n_left], tokens[:, n_left:]
        wanted_here = min(piece.shape[1], max(0, n_wanted - tokens.shape[1]))
        logits.append(_extend_window(model, piece, memory, place, wanted_here))
        memory.remember(piece)
    return torch.cat(logits, dim=1)


@torch.inference_mode()
def extend_each(model: Any, tokens: Tensor, memories: Sequence[Memory]) -> Tensor:
    """Read the next token of several texts, which may be at different places, in one pass where that can be.

    Args:
        model: A `LanguageModel`.
        tokens: (B, 1) int64, one for each text.
        memories: They share out the texts among them, and take the tokens in.

    Returns:
        Logits of the token after each, (B, vocab_size).
    """
    of_memories = tokens.split([memory.batch_size for memory in memories])  # (b, 1) each
    logits: list[Tensor] = [*of_memories]
    moving = [memory.place != _window_at(model, memory)[0] for memory in memories]
    for number in (number for number, moves in enumerate(moving) if moves):
        logits[number] = extend(model, of_memories[number], memories[number], 1)[:, -1]  # (b, vocab_size)
    staying = [number for number, moves in enumerate(moving) if not moves]
    if staying:
        together = torch.cat([of_memories[number] for number in staying])
        rows = model.decoder.extend(together, [memories[number] for number in staying])[:, -1]
        for number, own in zip(staying, rows.split([len(of_memories[number]) for number in staying]), strict=True):
            memories[number].remember(of_memories[number])
            logits[number] = own
    return logits[0] if len(logits) == 1 else torch.cat(logits)


def _extend_window(model: Any, piece: Tensor, memory: Memory, place: tuple[int, int], n_logits: int) -> Tensor:
    """Logits (B, n_logits, vocab_size) after the last of the tokens (B, n), in the window at `place`."""
    start, first_latent = place
    n_latents, n = None, piece.shape[1]
    if memory.place != place:  # its part of the text so far is read anew
        memory.clear(place)
        if memory.n_read > start:
            piece = torch.cat((memory.tokens_from(start), piece), dim=1)
        n_latents = memory.n_read + n - first_latent
    return model.decoder.extend(piece, [memory], n_latents, n_logits)


def _window_at(model: Any, memory: Memory) -> tuple[tuple[int, int], int]:
    """Start and first latent of the window that predicts from the next position; how many positions to read in it."""
    position = memory.n_read
    if memory.window is None:
        return (0, 0), min(model.room_without_window(position), _PIECE_LEN)
    window_len, stride = memory.window
    stop = (position // stride + 1) * stride
    start = window_start(position, window_len, stride)
    return (start, model.first_latent(start, stop)), stop - position
