"""Samples text at each validation."""

from typing import Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn

from llp.errors import require
from llp.generation.continuation import generate
from llp.generation.sampling import Sampling
from llp.language_model import LanguageModel


class SampleText(Callback):
    """Writes a sample to TensorBoard at each validation: a continuation of the beginning of the validation text.

    Data without a tokenizer is no text, and gets none.

    Args:
        sample_tokens: How many tokens to draw; 0: no samples.
        prompt_tokens: How many tokens of the validation text to use as the prompt.
        temperature: Divides the logits; 0 always picks the most likely token.
        top_p: Draw only from the most likely tokens that together have at least this probability.
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
        if not hasattr(data, "tokenizer"):
            return
        loader: Any = trainer.val_dataloaders
        prompt = loader.file.tokens[: self.prompt_tokens + 1].tolist()
        protocol = loader.protocol
        sampling = Sampling(self.temperature, top_p=self.top_p)
        # Every rank draws the same tokens: a sharded model needs all of them in its forward passes.
        with trainer.precision_plugin.forward_context():
            window = protocol["window_len"], protocol["stride"]
            drawn = [
                token
                for _, token in generate(
                    cast(LanguageModel, pl_module), [prompt], self.sample_tokens, window, [sampling]
                )
            ]
        text = f"{data.tokenizer.decode(prompt)}**{data.tokenizer.decode(drawn)}**"
        if trainer.is_global_zero:
            logger.experiment.add_text("sample", text, trainer.global_step - 1)  # where Lightning logs `val/loss`
