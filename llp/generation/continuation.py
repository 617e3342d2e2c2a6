"""Continues a text, token by token."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from llp.errors import require
from llp.evaluation.scoring_windows import window_start
from llp.generation.sampling import Sampling


def continue_text(
    model: Any,
    prompt: str = "",
    max_tokens: int = 200,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 0.95,
    seed: int = 0,
) -> Iterator[str]:
    """Continue a prompt with a trained model; yields pieces of text as they are drawn.

    Args:
        model: A `LanguageModel` with its tokenizer, in evaluation mode.
        prompt: The text to continue.
        max_tokens: How many tokens to draw.
        temperature: Divides the logits; 0 always picks the most likely token.
        top_k: Draw only from this many most likely tokens; null: from all.
        top_p: Draw only from the most likely tokens that together have at least this probability.
        seed: Seed of the random draws.

    Raises:
        SettingError: If a value can't be used.
    """
    sampling = Sampling(temperature, top_k, top_p, seed)
    require(max_tokens >= 1, "max_tokens", max_tokens, "set it to 1 or more")
    tokens = model.tokens(prompt)[0].tolist()
    window_len, stride = model.text_window
    drawn = generate(model, tokens, max_tokens, window_len, stride, sampling)
    return stream_text(model.tokenizer.decode, tokens, drawn)


@torch.inference_mode()
def generate(
    model: Any, tokens: list[int], n_tokens: int, window_len: int, stride: int, sampling: Sampling
) -> Iterator[int]:
    """Continue `tokens` by `n_tokens` tokens, which are yielded as they are drawn.

    Each is predicted from the window that would score its position, computed from scratch.

    Args:
        model: A `LanguageModel` in evaluation mode.
        tokens: The prompt with its start token.
        n_tokens: How many to draw.
        window_len: Length of the scoring windows.
        stride: Stride of the scoring windows.
        sampling: How to draw.
    """
    tokens = list(tokens)
    for _ in range(n_tokens):
        start = window_start(len(tokens) - 1, window_len, stride)
        window = torch.tensor([tokens[start:]], device=model.device)  # (1, N)
        tokens.append(sampling.draw(model(window)[0, -1]))
        yield tokens[-1]


def stream_text(decode: Callable[[list[int]], str], prompt: list[int], drawn: Iterable[int]) -> Iterator[str]:
    """Yield the text of drawn tokens as they come; a character of several tokens comes with the last of them."""
    tokens = list(prompt)
    shown = decode(tokens)
    for token in drawn:
        tokens.append(token)
        text = decode(tokens)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            yield text[len(shown) :]
            shown = text
    yield decode(tokens)[len(shown) :]
