"""Reads a text piece by piece. Each position is predicted from the window that would score it.

Latents have the positions that they would have in the full window, so earlier results stay valid while the window
fills. When the window moves on, the text in the new window is read again.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from llp.decoder.decoder import TextDecoder
from llp.decoder.kv_cache import KVCache
from llp.scoring.windows import window_start, window_stop

_LONGEST_PIECE = 4096  # positions read at a time in an unlimited window, so that memory doesn't grow with the text


@torch.inference_mode()
def extend(decoder: TextDecoder, tokens: Tensor, cache: KVCache, n_logits: int | None = None) -> Tensor:
    """Logits of the token after each of the next tokens of a text; see `TrainingModule.extend`.

    Args:
        decoder: The decoder.
        tokens: (B, n) int64.
        cache: The cache of the tokens read before. It is updated in place.
        n_logits: Number of last tokens for which logits are computed. Default: all.

    Returns:
        (B, n_logits, vocab_size).

    Raises:
        SettingError: If the cache has no window and the text is longer than the architecture's latents.
    """
    logits, n_wanted = [], tokens.shape[1] if n_logits is None else n_logits
    while tokens.shape[1]:
        span, n_left = _window_at(cache)
        piece, tokens = tokens[:, :n_left], tokens[:, n_left:]
        wanted_here = min(piece.shape[1], max(0, n_wanted - tokens.shape[1]))
        logits.append(_extend_window(decoder, piece, cache, span, wanted_here))
        cache.remember(piece)
    return torch.cat(logits, dim=1)


@torch.inference_mode()
def extend_each(decoder: TextDecoder, tokens: Tensor, caches: Sequence[KVCache]) -> Tensor:
    """Read the next token of several texts, which may be at different positions, in one pass if possible.

    Args:
        decoder: The decoder.
        tokens: (B, 1) int64, one for each text.
        caches: Caches that hold the texts, in order. They are updated in place.

    Returns:
        Logits of the token after each, (B, vocab_size).
    """
    of_caches = tokens.split([cache.batch_size for cache in caches])  # (b, 1) each
    logits: list[Tensor] = [*of_caches]
    moving = [cache.span != _window_at(cache)[0] for cache in caches]
    for number in (number for number, moves in enumerate(moving) if moves):
        logits[number] = extend(decoder, of_caches[number], caches[number], 1)[:, -1]  # (b, vocab_size)
    staying = [number for number, moves in enumerate(moving) if not moves]
    if staying:
        together = torch.cat([of_caches[number] for number in staying])
        rows = decoder.extend(together, [caches[number] for number in staying])[:, -1]
        for number, own in zip(staying, rows.split([len(of_caches[number]) for number in staying]), strict=True):
            caches[number].remember(of_caches[number])
            logits[number] = own
    return logits[0] if len(logits) == 1 else torch.cat(logits)


def _extend_window(decoder: TextDecoder, piece: Tensor, cache: KVCache, span: tuple[int, int], n_logits: int) -> Tensor:
    """Logits (B, n_logits, vocab_size) after the last of the tokens (B, n), in the window `span`."""
    if cache.span != span:  # the window has moved on: read its text again
        cache.clear(span)
        if cache.n_read > span[0]:
            piece = torch.cat((cache.tokens_from(span[0]), piece), dim=1)
    return decoder.extend(piece, [cache], n_logits)


def _window_at(cache: KVCache) -> tuple[tuple[int, int], int]:
    """Start and stop of the window that predicts from the next position, and the number of positions to read in it."""
    position = cache.n_read
    if cache.window is None:
        room = cache.geometry.room_without_window(position)
        return (0, cache.geometry.latent_len or 0), min(room, _LONGEST_PIECE)
    window_len, stride = cache.window
    stop = window_stop(position, stride)
    return (window_start(position, window_len, stride), stop), stop - position
