"""Sampling text, token by token."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from llp.errors import require


class Sampling:
    """How the next token is drawn from logits.

    Args:
        temperature: Divides the logits; 0 takes the likeliest token.
        top_k: Draw among so many of the likeliest tokens only; None: all.
        top_p: Draw among the likeliest tokens that together have at least this probability.
        seed: Of the draws.

    Raises:
        SettingError: If a value can't be used.
    """

    def __init__(self, temperature: float = 1.0, top_k: int | None = None, top_p: float = 1.0, seed: int = 0) -> None:
        require(temperature >= 0, "temperature", temperature, "set it to 0 or more")
        require(top_k is None or top_k >= 1, "top_k", top_k, "set it to 1 or more, or leave it out")
        require(0 < top_p <= 1, "top_p", top_p, "set it above 0 and to 1 at most")
        self.temperature, self.top_k, self.top_p = temperature, top_k, top_p
        self.generator = torch.Generator().manual_seed(seed)

    def probabilities(self, logits: Tensor) -> Tensor:
        """(vocab_size,) -> (vocab_size,): what the next token is drawn from."""
        if self.temperature == 0:
            return torch.nn.functional.one_hot(logits.argmax(), len(logits)).to(logits.dtype)
        ordered, order = (logits / self.temperature).sort(descending=True)
        shares = ordered.softmax(-1)
        if not shares.isfinite().all():  # a diverged model has no likeliest token
            return torch.full_like(shares, 1 / len(shares))
        kept = shares.cumsum(-1) - shares < self.top_p  # the likeliest token always
        kept[self.top_k if self.top_k is not None else len(kept) :] = False
        return torch.zeros_like(shares).scatter(0, order, shares * kept / (shares * kept).sum())

    def draw(self, logits: Tensor) -> int:
        """A token, from its logits (vocab_size,). On the CPU, so that every device and rank draws the same."""
        return int(torch.multinomial(self.probabilities(logits.float().cpu()), 1, generator=self.generator))


def generate(
    model: Any, tokens: list[int], n_tokens: int, window_len: int, stride: int, sampling: Sampling
) -> Iterator[int]:
    """Continue `tokens` by `n_tokens`, which are yielded as they are drawn.

    Each is predicted from the window that scoring would take for its place, computed anew.

    Args:
        model: A `LanguageModel` in evaluation mode.
        tokens: The prompt with its start token.
        n_tokens: How many to draw.
        window_len: Of the scoring windows.
        stride: Of the scoring windows.
        sampling: How to draw.
    """
    tokens = list(tokens)
    for _ in range(n_tokens):
        place = len(tokens) - 1
        start = max(0, (place // stride + 1) * stride - window_len)
        window = torch.tensor([tokens[start:]], device=model.device)  # (1, N)
        tokens.append(sampling.draw(model(window)[0, -1]))
        yield tokens[-1]


def stream_text(decode: Callable[[list[int]], str], prompt: list[int], drawn: Iterable[int]) -> Iterator[str]:
    """The text of drawn tokens, as it comes. A character of several tokens comes when its last one does."""
    tokens = list(prompt)
    shown = decode(tokens)
    for token in drawn:
        tokens.append(token)
        text = decode(tokens)
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            yield text[len(shown) :]
            shown = text
    yield decode(tokens)[len(shown) :]


class SampleText(Callback):
    """Writes a sample to TensorBoard at each validation: the validation text's beginning, continued.

    Args:
        sample_tokens: How many tokens to draw; 0: no samples.
        prompt_tokens: How many tokens of the validation split they follow.
        temperature: See `Sampling`.
        top_p: See `Sampling`.
    """

    def __init__(
        self, sample_tokens: int = 64, prompt_tokens: int = 32, temperature: float = 1.0, top_p: float = 0.95
    ) -> None:
        require(sample_tokens >= 0, "sample.sample_tokens", sample_tokens, "set it to 0 or more")
        require(prompt_tokens >= 0, "sample.prompt_tokens", prompt_tokens, "set it to 0 or more")
        Sampling(temperature, top_p=top_p)  # a bad value is refused now, not at the first validation
        self.sample_tokens, self.prompt_tokens = sample_tokens, prompt_tokens
        self.temperature, self.top_p = temperature, top_p

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        logger = trainer.logger
        if not self.sample_tokens or trainer.state.fn != TrainerFn.FITTING or not isinstance(logger, TensorBoardLogger):
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        loader: Any = trainer.val_dataloaders
        prompt = loader.file.tokens[: self.prompt_tokens + 1].tolist()
        protocol = loader.protocol
        sampling = Sampling(self.temperature, top_p=self.top_p)
        # Every rank draws the same tokens: a sharded model needs all of them in its forward passes.
        with trainer.precision_plugin.forward_context():
            drawn = list(
                generate(pl_module, prompt, self.sample_tokens, protocol["window_len"], protocol["stride"], sampling)
            )
        text = f"{data.tokenizer.decode(prompt)}**{data.tokenizer.decode(drawn)}**"
        if trainer.is_global_zero:
            logger.experiment.add_text("sample", text, trainer.global_step - 1)  # where Lightning logs `val/loss`
