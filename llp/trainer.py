"""Lightning's Trainer with two more things to do: generating text, and measuring how far back a model reads."""

from typing import Any, Literal

import torch
from lightning.pytorch import Trainer

from llp import checkpoints
from llp.context import loss_by_context, write
from llp.errors import require
from llp.generation import Sampling, generate, stream_text
from llp.language_model import LanguageModel
from llp.report import aligned


class LLPTrainer(Trainer):
    """Lightning's Trainer with two more things to do."""

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
        window = self._load(model, datamodule, ckpt_path)
        tokens = [datamodule.start_token(), *datamodule.tokenizer.encode(prompt.splitlines(keepends=True)).tolist()]
        print(prompt, end="", flush=True)
        with torch.inference_mode(), self.precision_plugin.forward_context():
            drawn = generate(model, tokens, max_tokens, *window, sampling)
            for text in stream_text(datamodule.tokenizer.decode, tokens, drawn):
                print(text, end="", flush=True)
        print()

    def context(
        self,
        model: LanguageModel,
        datamodule: Any,
        ckpt_path: str | None = None,
        max_context: int | None = None,
        split: Literal["validation", "test"] = "validation",
        n_blocks: int = 256,
        block_len: int | None = None,
    ) -> None:
        """Score the same tokens with growing context: how far back a model really reads.

        Args:
            model: The model.
            datamodule: Whose text is scored.
            ckpt_path: The model's checkpoint.
            max_context: The longest context in tokens; null: what a scoring window has before a block.
            split: Whose tokens are scored.
            n_blocks: How many blocks of tokens, spread evenly over the split.
            block_len: Tokens of a block, at most the stride of scoring windows; null: 32, or the stride if it is less.
        """
        require(n_blocks >= 1, "n_blocks", n_blocks, "set it to 1 or more")
        window_len, stride = self._load(model, datamodule, ckpt_path)
        block_len = min(32, stride) if block_len is None else block_len
        remedy = f"set it to 1 .. {stride}, the stride of scoring windows"
        require(1 <= block_len <= stride, "block_len", block_len, remedy)
        longest = window_len - block_len if max_context is None else max_context
        require(longest >= 1, "max_context", longest, "set it to 1 or more")
        file = datamodule.files[split]
        batch_size = max(1, datamodule.batch_size * datamodule.window_len // (longest + block_len))
        with torch.inference_mode(), self.precision_plugin.forward_context():
            curve = loss_by_context(model, file.tokens, file.documents, longest, block_len, n_blocks, batch_size)
        cells = [[f"{point.context:,}", f"{point.loss:.4f}", f"{point.perplexity:,.4f}"] for point in curve]
        print("\n".join(aligned([["context", "loss", "perplexity"], *cells], n_left=0)))
        title = f"{type(model).__name__}: {curve[0].targets:,} tokens of {datamodule.name}, {split}"
        assert ckpt_path is not None
        for path in write(curve, checkpoints.run_folder(ckpt_path), title):
            print(f"Written to {path}")

    def _load(self, model: LanguageModel, datamodule: Any, ckpt_path: str | None) -> tuple[int, int]:
        """Load a checkpoint's weights and its text; returns length and stride of the scoring windows."""
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
        return window
