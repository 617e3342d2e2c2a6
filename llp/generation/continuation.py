"""Continues texts, token by token."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch

from llp.errors import require
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
    """Continue a prompt with a trained model; yields pieces of text as they are drawn, until the document ends.

    Args:
        model: A `LanguageModel` with its tokenizer, in evaluation mode.
        prompt: The text to continue.
        max_tokens: How many tokens to draw at most.
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
    drawn = generate(model, [tokens], max_tokens, model.text_window, [sampling], model.start_token)
    return stream_text(model.tokenizer.decode, tokens, (token for _, token in drawn))


def generate(
    model: Any,
    prompts: Sequence[Sequence[int]],
    n_tokens: int,
    window: tuple[int, int],
    samplings: Sequence[Sampling],
    end_token: int | None = None,
) -> Iterator[tuple[int, int]]:
    """Continue texts side by side; yields the number of a text and its next token, as they are drawn.

    Each token is drawn from the distribution with which its text would be scored. What is drawn for one text does not
    depend on the others.

    Args:
        model: A `LanguageModel` in evaluation mode.
        prompts: The texts, each with its start token.
        n_tokens: How many tokens to draw for each at most.
        window: Length and stride of the scoring windows.
        samplings: How to draw, for each text.
        end_token: A text ends before this one; None: after `n_tokens`.
    """
    memories = [model.new_memory(1, window) for _ in prompts]
    logits = {
        number: model.extend(torch.tensor([prompt], device=model.device), memory, n_logits=1)[0][0, -1]
        for number, (prompt, memory) in enumerate(zip(prompts, memories, strict=True))
    }  # (vocab_size,) each
    for step in range(n_tokens):
        drawn = {number: samplings[number].draw(row) for number, row in logits.items()}
        drawn = {number: token for number, token in drawn.items() if token != end_token}
        yield from drawn.items()
        if not drawn or step == n_tokens - 1:
            return
        tokens = torch.tensor([[token] for token in drawn.values()], device=model.device)  # (B, 1)
        rows = model.extend_each(tokens, [memories[number] for number in drawn])  # (B, vocab_size)
        logits = dict(zip(drawn, rows, strict=True))


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
