"""The LightningModule that trains and scores a decoder: loss, optimizer, schedule, metrics."""

from abc import ABC, abstractmethod
from dataclasses import fields
from typing import Any, Literal, TypeVar

import torch
from lightning.pytorch import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from llp import optimization
from llp.checkpoints.module import CheckpointedModule
from llp.decoder.block import DecoderSettings
from llp.decoder.extend import extend
from llp.decoder.geometry import Geometry
from llp.decoder.kv_cache import KVCache
from llp.errors import require
from llp.lightning_internals import is_accumulating, untyped
from llp.optimization import OptimizationSettings
from llp.scoring.label_metric import LabelScore
from llp.scoring.metric import Score, ScoringBatch

S = TypeVar("S", DecoderSettings, OptimizationSettings)


class TrainingModule(CheckpointedModule, ABC):
    """Trains and scores a decoder-only language model.

    A subclass says what the decoder is: `LanguageModel` builds it from the attention patterns of its layers,
    `PretrainedModel` takes a model of transformers. Nothing is allocated until `configure_model` builds `decoder`.

    Args:
        learning_rate: Peak learning rate of AdamW.
        betas: AdamW's decay rates of the first and second moments.
        weight_decay: AdamW's weight decay, applied to the weights of linear layers only.
        schedule: `cosine` decays to `final_learning_rate` at `trainer.max_steps`; `halving` halves the learning rate
            every `halve_every` steps.
        warmup_steps: Optimizer steps of linear warm-up, under either schedule.
        final_learning_rate: Where the cosine ends, as a fraction of `learning_rate`.
        halve_every: Optimizer steps from one halving to the next.

    Raises:
        SettingError: If a value can't be used.
    """

    changeable_settings = frozenset(field.name for field in fields(OptimizationSettings))

    def __init__(
        self,
        learning_rate: float = 5e-4,
        betas: tuple[float, float] = (0.9, 0.95),
        weight_decay: float = 0.1,
        schedule: Literal["cosine", "halving"] = "cosine",
        warmup_steps: int = 500,
        final_learning_rate: float = 0.1,
        halve_every: int = 100_000,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.optimization = self._chosen(OptimizationSettings)
        self.window_losses: list[Tensor] = []
        """Mean loss of each window (B,) of this rank, for the batches of the optimizer step so far."""
        self.step_loss: Tensor
        """Mean loss of the optimizer step, over its batches and all ranks: ()."""
        self.score: Score | LabelScore
        """Sums up the losses of a validation or a test."""

    def _chosen(self, settings: type[S]) -> S:
        """Those of the hyperparameters that a class of settings has."""
        return settings(**{field.name: self.hparams[field.name] for field in fields(settings)})

    # What a subclass says

    @property
    @abstractmethod
    def geometry(self) -> Geometry:
        """What follows from the layers: reach, context, windows. It needs no weights."""

    @abstractmethod
    def configure_model(self) -> None:
        """Build `decoder`, once; under `ModelParallelStrategy` shard it over the ranks, block by block."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the next token: (B, N) int64 -> (B, T, vocab_size), at the last T positions."""
        logits: Tensor = self.decoder(tokens)
        return logits

    # Text, piece by piece

    def new_cache(self, batch_size: int = 1, window: tuple[int, int] | None = None) -> KVCache:
        """An empty cache, with which `extend` reads a text piece by piece.

        Args:
            batch_size: B, sequences that are read side by side.
            window: Length and stride of scoring windows: each position is predicted from the window that would score
                it. By default the text is one window without end (for an architecture with latents: its first
                `latent_len` positions).
        """
        if window is not None and self.geometry.scores_as_one_pass(*window):
            window = None
        return self.decoder.new_cache(batch_size, window)

    def extend(self, tokens: Tensor, cache: KVCache, n_logits: int | None = None) -> tuple[Tensor, KVCache]:
        """Read the next tokens of a text; a text in pieces of any lengths gives the logits of the whole.

        Args:
            tokens: (B, n) int64, n >= 1.
            cache: Of what was read before; it takes the tokens in, and is returned.
            n_logits: Compute only those after this many last tokens; by default after all of them.

        Returns:
            Logits of the token after each of them, (B, n, vocab_size), or the last `n_logits`, and the cache.

        Raises:
            SettingError: If a text without a window is longer than the architecture's latents.
        """
        return extend(self.decoder, tokens, cache, n_logits), cache

    # Training

    def setup(self, stage: str) -> None:
        """Hand the geometry to the data, which cut their windows by it."""
        if self.data is not None:
            self.data.geometry = self.geometry

    def training_step(self, batch: tuple[Tensor, ...], batch_idx: int) -> dict[str, Any]:
        """Mean loss in nats over the positions with a loss.

        `batch` is inputs (B, N) and targets (B, S) of the last S positions; or inputs, targets (B, S) and their
        positions (B, S), where others have a loss.
        """
        inputs, *scored = batch
        losses = self.decoder.loss(inputs, *scored)
        n_scored = losses.each.shape[1]
        n_last = n_scored if len(scored) == 1 else None
        self.window_losses.append(losses.each.mean(dim=1))
        if not is_accumulating(self.trainer):  # the last batch of an optimizer step
            # All ranks' batches are of one size, so that the mean of means is the mean.
            self.step_loss = self.trainer.strategy.reduce(torch.cat(self.window_losses).mean(), reduce_op="mean")
            self.log("loss", self.step_loss, prog_bar=True, logger=False)
        return {
            "loss": losses.mean,
            "trained_tokens": losses.each.numel(),
            "input_tokens": inputs.numel(),
            # Backward takes twice the forward pass.
            "flops": 3 * self.decoder.flops(inputs.shape[1], n_scored, n_last) * len(inputs),
        }

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not is_accumulating(self.trainer):
            self.window_losses.clear()

    def configure_callbacks(self) -> list[Callback]:
        """Metrics, dropout that a resumed run draws identically, and a test report behind a check of causality."""
        from llp.default_callbacks import default_callbacks  # they name this class

        there = {type(callback) for callback in untyped(self.trainer).callbacks}
        return [callback for callback in default_callbacks() if type(callback) not in there]

    def learning_rate_factor(self, step: int) -> float:
        """The learning rate of an optimizer step, as a fraction of `learning_rate`."""
        return self.optimization.factor(step, self.trainer.max_steps)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with weight decay on linear weights only, and the learning rate as a function of the step."""
        max_steps = self.trainer.max_steps
        has_length = max_steps > 0 or self.optimization.schedule != "cosine"
        require(has_length, "trainer.max_steps", max_steps, "the cosine needs its length")
        # Under automatic mixed precision Lightning refuses to clip the gradients of a fused step.
        optimizer = self.optimization.adamw(self.decoder, fused="mixed" not in str(self.trainer.precision))
        scheduler = LambdaLR(optimizer, self.learning_rate_factor)
        self.optimizer_settings = optimization.group_settings(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # Scoring

    def score_nats(self, batch: ScoringBatch) -> Tensor:
        """Loss in nats of every target: (B, S)."""
        return self.decoder.loss(batch.inputs, batch.targets).each

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        if isinstance(self.score, LabelScore):
            self.score.update(self.decoder(batch.inputs, batch.positions), batch)
        else:
            self.score.update(self.score_nats(batch), batch)

    test_step = validation_step

    def predict_step(self, batch: ScoringBatch, batch_idx: int) -> Tensor:
        return self.score_nats(batch)

    def on_validation_epoch_start(self) -> None:
        loader: Any = self.trainer.test_dataloaders if self.trainer.testing else self.trainer.val_dataloaders
        self.score = loader.score().to(self.device)

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_epoch_end(self) -> None:
        self._log_score("val")

    def on_test_epoch_end(self) -> None:
        self._log_score("test")

    def _log_score(self, split: str) -> None:
        # The metric has summed over the ranks already; every rank logs the same metrics.
        metrics = {f"{split}/{name}": value for name, value in self.score.total().items()}
        is_fitting = self.trainer.state.fn == TrainerFn.FITTING
        # With None they go to a logger if there is one, and otherwise only into what `Trainer.test` returns.
        self.log_dict(metrics, sync_dist=True, logger=False if is_fitting else None)
        if is_fitting:  # at the step's own number: Lightning's count can be one behind in a resumed run
            for logger in self.loggers:
                logger.log_metrics(metrics, self.trainer.global_step - 1)
