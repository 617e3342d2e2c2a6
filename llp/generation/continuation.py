"""Continues texts, token by token."""

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from llp.decoder.extend import extend_each
from llp.decoder.kv_cache import KVCache
from llp.errors import require
from llp.generation.sampling import Sampling
from llp.text_model import TextModel
from llp.training_module import TrainingModule


def continue_text(
    model: TextModel,
    prompt: str = "",
    max_tokens: int = 200,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 0.95,
    seed: int = 0,
    stop: Sequence[str] = (),
) -> Iterator[str]:
    """Continue a prompt with a trained model until the document ends, and yield pieces of text as they are generated.

    There is one piece for each token, which is empty while a character or a stop string may be incomplete, and one at
    the end.

    The arguments are those of `continue_texts`.

    Raises:
        SettingError: If a value can't be used.
    """
    sampling = Sampling(temperature, top_k, top_p, seed)
    _check(max_tokens, stop)
    tokens = model.tokens(prompt)[0].tolist()
    drawn = generate(model.module, [tokens], max_tokens, model.window, [sampling], model.start_token)
    return stream_text(TextStream(model.tokenizer.decode, tokens, stop), (token for _, token in drawn))


def continue_texts(
    model: TextModel,
    prompts: Iterable[str],
    max_tokens: int = 200,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 0.95,
    seed: int = 0,
    stop: Sequence[str] = (),
    n_samples: int = 1,
    batch_size: int = 16,
) -> Iterator[list[str]]:
    """Continue many prompts of any lengths side by side, and yield the completions of each prompt in order.

    A completion is the same as that of `continue_text` for its prompt and seed. Because rounding depends on the batch
    size, a sample can occasionally differ.

    Args:
        model: The model with its tokenizer, in evaluation mode.
        prompts: The texts to continue.
        max_tokens: The largest number of tokens to generate for each text.
        temperature: Divides the logits; 0 always picks the most likely token.
        top_k: Sample only from the `top_k` most likely tokens. By default, from all tokens.
        top_p: Sample only from the most likely tokens that together have at least this probability.
        seed: Random seed; sample n of each prompt, counted from 0, has the seed `seed` + n.
        stop: A text ends before any of these strings.
        n_samples: Number of continuations of each prompt.
        batch_size: Number of texts that are continued side by side.

    Raises:
        SettingError: If a value can't be used.
    """
    Sampling(temperature, top_k, top_p, seed)  # refuse a bad value now, not when the first text is drawn
    _check(max_tokens, stop)
    require(n_samples >= 1, "n_samples", n_samples, "set it to 1 or more")
    require(batch_size >= 1, "batch_size", batch_size, "set it to 1 or more")

    def in_batches() -> Iterator[str]:
        texts = ((prompt, sample) for prompt in prompts for sample in range(n_samples))
        while batch := list(islice(texts, batch_size)):
            samplings = [Sampling(temperature, top_k, top_p, seed + sample) for _, sample in batch]
            yield from _complete(model, [prompt for prompt, _ in batch], max_tokens, samplings, stop)

    completions = in_batches()
    return iter(lambda: list(islice(completions, n_samples)), [])


def _check(max_tokens: int, stop: Sequence[str]) -> None:
    require(max_tokens >= 1, "max_tokens", max_tokens, "set it to 1 or more")
    remedy = "it would end every text at once; give some text, or leave it out"
    require("" not in stop, "stop", repr(""), remedy)


def _complete(
    model: TextModel, prompts: Sequence[str], max_tokens: int, samplings: Sequence[Sampling], stop: Sequence[str]
) -> list[str]:
    """Continue prompts side by side, each until its document ends or a stop string occurs."""
    tokens = [model.tokens(prompt)[0].tolist() for prompt in prompts]
    streams = [TextStream(model.tokenizer.decode, text, stop) for text in tokens]
    pieces: list[list[str]] = [[] for _ in prompts]
    ended: set[int] = set()
    for number, token in generate(model.module, tokens, max_tokens, model.window, samplings, model.start_token, ended):
        pieces[number].append(streams[number].add(token))
        if streams[number].has_ended:
            ended.add(number)
    return ["".join(of_text) + stream.rest() for of_text, stream in zip(pieces, streams, strict=True)]


def generate(
    model: TrainingModule,
    prompts: Sequence[Sequence[int]],
    n_tokens: int,
    window: tuple[int, int],
    samplings: Sequence[Sampling],
    end_token: int | None = None,
    ended: Container[int] = (),
) -> Iterator[tuple[int, int]]:
    """Continue texts side by side, and yield the number of a text and its next token for each token that is drawn.

    Each token is drawn from the distribution with which it would be scored. The tokens of a text do not depend on the
    other texts.

    Args:
        model: The model in evaluation mode.
        prompts: The tokens of the texts to continue, each with its start token.
        n_tokens: The largest number of tokens to draw for each text.
        window: Length and stride of the scoring windows.
        samplings: How tokens are drawn, for each text.
        end_token: A text ends before this token; None to always draw `n_tokens`.
        ended: Numbers of texts that have ended. The caller may add to it while it reads the tokens.
    """
    groups, logits = _read(model, prompts, window)
    for step in range(n_tokens):
        drawn = {number: samplings[number].draw(row) for number, row in logits.items()}
        drawn = {number: token for number, token in drawn.items() if token != end_token}
        yield from drawn.items()
        drawn = {number: token for number, token in drawn.items() if number not in ended}
        if not drawn or step == n_tokens - 1:
            return
        groups = [group for group in groups if group.keep(drawn)]
        numbers = [number for group in groups for number in group.numbers]
        tokens = torch.tensor([[drawn[number]] for number in numbers], device=model.device)  # (B, 1)
        rows = extend_each(model.decoder, tokens, [group.cache for group in groups])  # (B, vocab_size)
        logits = dict(zip(numbers, rows, strict=True))


class _Group:
    """The texts with the same prompt. They are always at the same position, and share a cache."""

    def __init__(self, cache: KVCache, numbers: list[int]) -> None:
        self.cache, self.numbers = cache, numbers
        if len(numbers) > 1:
            cache.select([0] * len(numbers))  # the prompt was read only once

    def keep(self, numbers: Container[int]) -> bool:
        """Keep only the texts with these numbers, and return whether there are any."""
        rows = [row for row, number in enumerate(self.numbers) if number in numbers]
        if len(rows) < len(self.numbers):
            self.cache.select(rows)
            self.numbers = [self.numbers[row] for row in rows]
        return bool(rows)


def _read(
    model: TrainingModule, prompts: Sequence[Sequence[int]], window: tuple[int, int]
) -> tuple[list[_Group], dict[int, Tensor]]:
    """Read each prompt once. Returns the groups of texts, and the logits (vocab_size,) of each text's next token."""
    numbers: dict[tuple[int, ...], list[int]] = {}
    for number, prompt in enumerate(prompts):
        numbers.setdefault(tuple(prompt), []).append(number)
    groups: list[_Group] = []
    logits: dict[int, Tensor] = {}
    for prompt, own in numbers.items():
        cache = model.new_cache(1, window)
        row = model.extend(torch.tensor([prompt], device=model.device), cache, n_logits=1)[0][0, -1]
        groups.append(_Group(cache, own))
        logits |= dict.fromkeys(own, row)
    return groups, logits


class TextStream:
    """Decodes tokens one by one, up to a stop string.

    A character that consists of several tokens is returned with the last of them. Text that may be the beginning of a
    stop string is held back until it is certain that it is not.

    Args:
        decode: Maps tokens to their text.
        prompt: The tokens before the first one, whose text is not returned.
        stop: The text ends before any of these strings.
    """

    def __init__(self, decode: Callable[[list[int]], str], prompt: Sequence[int], stop: Sequence[str] = ()) -> None:
        self.decode, self.stop = decode, stop
        self.has_ended = False
        """Whether a stop string has occurred."""
        self._tokens = list(prompt)  # the next tokens are decoded together with these
        self._n_old, self._n_shown = len(self._tokens), len(decode(self._tokens))
        self._held = ""

    def add(self, token: int) -> str:
        """Add the next token, and return the text that has become certain."""
        self._tokens.append(token)
        text = self.decode(self._tokens)
        return "" if text.endswith("\N{REPLACEMENT CHARACTER}") else self._take(text)

    def rest(self) -> str:
        """The remaining text, after the last token."""
        shown = "" if self.has_ended else self._take(self.decode(self._tokens))
        return shown + self._held

    def _take(self, text: str) -> str:
        """Take in the text of the tokens, and return the part of it that is certain."""
        self._held += text[self._n_shown :]
        if len(text) > self._n_shown:
            # Decoding everything each time would take ever longer, so only the newest tokens are kept. They are needed,
            # because a tokenizer may decode the beginning of a text differently.
            del self._tokens[: self._n_old]
            self._n_old, self._n_shown = len(self._tokens), len(self.decode(self._tokens))
        found = [start for start in map(self._held.find, self.stop) if start >= 0]
        if found:
            self.has_ended = True
            shown, self._held = self._held[: min(found)], ""
            return shown
        n_certain = len(self._held) - max((_overlap(self._held, one) for one in self.stop), default=0)
        shown, self._held = self._held[:n_certain], self._held[n_certain:]
        return shown


def _overlap(text: str, stop: str) -> int:
    """The length of the longest proper beginning of `stop` that `text` ends with."""
    return next(n for n in range(len(stop) - 1, -1, -1) if text.endswith(stop[:n]))


def stream_text(stream: TextStream, drawn: Iterable[int]) -> Iterator[str]:
    """Yield the text that each drawn token adds, and finally the rest, up to the first stop string."""
    for token in drawn:
        yield stream.add(token)
        if stream.has_ended:
            break
    yield stream.rest()


class SampleText(Callback):
    """Writes a sample to TensorBoard at each validation: a continuation of the beginning of the validation text.

    If the data has no tokenizer, nothing is written.

    Args:
        sample_tokens: Number of tokens to draw. With 0, nothing is written.
        prompt_tokens: Number of tokens of the validation text to use as the prompt.
        temperature: Divides the logits; 0 always picks the most likely token.
        top_p: Draw only from the most likely tokens that together have at least this probability.
    """

    def __init__(
        self, sample_tokens: int = 64, prompt_tokens: int = 32, temperature: float = 1.0, top_p: float = 0.95
    ) -> None:
        require(sample_tokens >= 0, "sample.sample_tokens", sample_tokens, "set it to 0 or more")
        require(prompt_tokens >= 0, "sample.prompt_tokens", prompt_tokens, "set it to 0 or more")
        Sampling(temperature, top_p=top_p)  # refuse a bad value now, not at the first validation
        self.sample_tokens, self.prompt_tokens = sample_tokens, prompt_tokens
        self.temperature, self.top_p = temperature, top_p

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        logger, data = trainer.logger, trainer.datamodule  # type: ignore[attr-defined]
        if not self.sample_tokens or trainer.state.fn != TrainerFn.FITTING or not isinstance(logger, TensorBoardLogger):
            return
        if not hasattr(data, "tokenizer"):
            return
        assert isinstance(pl_module, TrainingModule)
        loader: Any = trainer.val_dataloaders
        prompt = loader.file.tokens[: self.prompt_tokens + 1].tolist()
        window = loader.protocol["window_len"], loader.protocol["stride"]
        sampling = Sampling(self.temperature, top_p=self.top_p)
        # Every rank draws the same tokens: a sharded model needs all of them in its forward passes.
        with trainer.precision_plugin.forward_context():
            drawn = [token for _, token in generate(pl_module, [prompt], self.sample_tokens, window, [sampling])]
        text = f"{data.tokenizer.decode(prompt)}**{data.tokenizer.decode(drawn)}**"
        if trainer.is_global_zero:
            logger.experiment.add_text("sample", text, trainer.global_step - 1)  # where Lightning logs `val/loss`
