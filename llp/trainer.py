"""Lightning's Trainer with one more thing to do: generating text."""

from typing import Any

import torch
from lightning.pytorch import Trainer

from llp import checkpoints
from llp.errors import require
from llp.generation import Sampling, generate, stream_text
from llp.language_model import LanguageModel


class LLPTrainer(Trainer):
    """Lightning's Trainer with one more thing to do."""

    def generate(
        self,
        model: LanguageModel,
        datamodule: Any,
        ckpt_path: str | None = None,
        prompt: str = "",
        max_tokens: int = 200,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float = 0.95,
        seed: int = 0,
    ) -> None:
        """Continue a prompt with a trained model, printed as it is drawn.

        Args:
            model: The model.
            datamodule: Whose tokenizer the model was trained with.
            ckpt_path: The model's checkpoint.
            prompt: Text to continue.
            max_tokens: How many tokens to draw.
            temperature: Divides the logits; 0 takes the likeliest token.
            top_k: Draw among so many of the likeliest tokens only; null: all.
            top_p: Draw among the likeliest tokens that together have at least this probability.
            seed: Of the draws.
        """
        sampling = Sampling(temperature, top_k, top_p, seed)
        require(max_tokens >= 1, "max_tokens", max_tokens, "set it to 1 or more")
        require(ckpt_path is not None, "ckpt_path", None, "name the checkpoint of a trained model")
        assert ckpt_path is not None
        checkpoint = checkpoints.read(ckpt_path)
        datamodule.prepare_data()
        datamodule.setup("predict")
        checkpoints.check_tokenizer(checkpoint, datamodule)
        window = model.scoring_window(datamodule.window_len, datamodule.scoring_window_len, datamodule.scoring_stride)
        model.configure_model()
        model.load_state_dict(checkpoint["state_dict"])
        model.eval().to(self.strategy.root_device)
        tokens = [datamodule.start_token(), *datamodule.tokenizer.encode(prompt.splitlines(keepends=True)).tolist()]
        print(prompt, end="", flush=True)
        with torch.inference_mode(), self.precision_plugin.forward_context():
            drawn = generate(model, tokens, max_tokens, *window, sampling)
            for text in stream_text(datamodule.tokenizer.decode, tokens, drawn):
                print(text, end="", flush=True)
        print()
