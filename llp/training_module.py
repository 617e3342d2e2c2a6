"""The LightningModule that trains and scores a decoder: loss, optimizer, schedule, metrics."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any, Literal, TypeVar

import torch
from lightning.pytorch import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
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
from llp.scoring.metric import MeanLoss, Score, ScoringBatch

S = TypeVar("S", DecoderSettings, OptimizationSettings)

Batch = Tensor | Sequence[Tensor]
"""Token ids (B, N), as a tensor or in a list, or inputs and targets; see `inputs_and_targets`."""


class TrainingModule(CheckpointedModule, ABC):
    """Trains and scores a decoder-only language model.

    A subclass defines the decoder: `LanguageModel` builds it from the attention patterns of its layers,
    `PretrainedModel` uses a model of transformers. No weights are allocated until `configure_model` builds `decoder`. A
    Trainer calls it; without a Trainer, the model builds itself when its weights are first needed: in `forward`,
    `parameters` or `load_state_dict`.

    Batches for training, validation, test and prediction may come from any loader. A batch is either token ids (B, N),
    each of which predicts the next, or `(inputs, targets)` of shapes (B, N) and (B, S), where the targets are the
    tokens after the last S inputs. With the data modules of `datamodules`, whole texts and tasks are scored.

    Args:
        learning_rate: Peak learning rate of AdamW.
        betas: AdamW's decay rates of the first and second moments.
        weight_decay: AdamW's weight decay, applied to the weights of linear layers only.
        schedule: `cosine` decays to `final_learning_rate` at `trainer.max_steps`, or at the end of the last epoch;
            `halving` halves the learning rate every `halve_every` steps.
        warmup_steps: Optimizer steps of linear warm-up, under either schedule.
        final_learning_rate: Learning rate at the end of the cosine schedule, as a fraction of `learning_rate`.
        halve_every: Number of optimizer steps between two halvings.

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
        """Mean loss of each window (B,) on this rank, for the batches of the current optimizer step so far."""
        self.step_loss: Tensor
        """Mean loss of the optimizer step over its batches and all ranks: ()."""
        self.score: Score | LabelScore | MeanLoss
        """Sums the losses of a validation or a test."""
        self.n_steps = 0
        """Number of optimizer steps of the whole run, the length of the cosine."""

    def _chosen(self, settings: type[S]) -> S:
        """The hyperparameters that are fields of a class of settings."""
        return settings(**{field.name: self.hparams[field.name] for field in fields(settings)})

    # Defined by a subclass

    @property
    @abstractmethod
    def geometry(self) -> Geometry:
        """Reach, context lengths and windows, computed from the layers' patterns without any weights."""

    @abstractmethod
    def configure_model(self) -> None:
        """Build `decoder` once; under `ModelParallelStrategy`, shard it over the ranks, block by block."""

    def _build_without_trainer(self) -> None:
        """Build the decoder in plain torch. With a Trainer, the Trainer does this at the time its strategy requires."""
        if "decoder" in self._modules:
            return
        remedy = "call configure_model() first: its weights are not built yet"
        require(self._trainer is None, "model", type(self).__name__, remedy)
        self.configure_model()
        self.to(self.device, self.dtype)  # the module may have been moved before it had weights

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits of the next token at the last T positions: (B, N) int64 -> (B, T, vocab_size)."""
        self._build_without_trainer()
        logits: Tensor = self.decoder(tokens)
        return logits

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        if self._trainer is None:  # an optimizer of no parameters would train nothing
            self._build_without_trainer()
        return super().named_parameters(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        self._build_without_trainer()
        return super().load_state_dict(state_dict, strict, assign)

    # Text, piece by piece

    def new_cache(self, batch_size: int = 1, window: tuple[int, int] | None = None) -> KVCache:
        """An empty cache, with which `extend` reads a text piece by piece.

        Args:
            batch_size: B, the number of sequences that are read side by side.
            window: Length and stride of scoring windows; each position is predicted from the window that would score
                it. By default the whole text is one window. For an architecture with latents, this window can only hold
                `latent_len` positions.
        """
        if window is not None and self.geometry.scores_as_one_pass(*window):
            window = None
        self._build_without_trainer()
        return self.decoder.new_cache(batch_size, window)

    def extend(self, tokens: Tensor, cache: KVCache, n_logits: int | None = None) -> tuple[Tensor, KVCache]:
        """Read the next tokens of a text. Pieces of any lengths give the same logits as the whole text.

        Args:
            tokens: (B, n) int64, n >= 1.
            cache: The cache of the tokens read before. It is updated in place.
            n_logits: Number of last tokens for which logits are computed. Default: all.

        Returns:
            Logits of the token after each of `tokens`, (B, n, vocab_size), or after the last `n_logits` of them, and
            the cache.

        Raises:
            SettingError: If the cache has no `window` and the text is longer than the architecture's latents.
        """
        self._build_without_trainer()
        return extend(self.decoder, tokens, cache, n_logits), cache

    # Training

    def setup(self, stage: str) -> None:
        """Pass the geometry to the data module, which needs it to cut windows."""
        if self.data is not None:
            self.data.geometry = self.geometry

    def training_step(self, batch: Batch, batch_idx: int) -> dict[str, Any]:
        """Mean loss in nats over the positions with a loss; for the forms of `batch` see `inputs_and_targets`."""
        inputs, *scored = self._unpacked(batch, batch_idx)
        losses = self.decoder.loss(inputs, *scored)
        n_scored = losses.each.shape[1]
        n_last = n_scored if len(scored) == 1 else None
        self.window_losses.append(losses.each.mean(dim=1))
        if not is_accumulating(self.trainer):  # the last batch of an optimizer step
            # The batches of all ranks have the same size, so the mean of means is the mean.
            self.step_loss = self.trainer.strategy.reduce(torch.cat(self.window_losses).mean(), reduce_op="mean")
            self.log("loss", self.step_loss, prog_bar=True, logger=False)
        return {
            "loss": losses.mean,
            "trained_tokens": losses.each.numel(),
            "input_tokens": inputs.numel(),
            # Backward takes twice the forward pass.
            "flops": 3 * self.decoder.flops(inputs.shape[1], n_scored, n_last) * len(inputs),
        }

    def _unpacked(self, batch: Batch, batch_idx: int) -> tuple[Tensor, ...]:
        """The arguments of the decoder's loss for a batch. Token ids are checked in the first batch of an epoch."""
        tensors, vocab_size = inputs_and_targets(batch), self.hparams["vocab_size"]
        if batch_idx == 0:  # only here, since it makes a GPU wait for the batch
            for ids in (int(extreme) for tokens in tensors[:2] if tokens.numel() for extreme in tokens.aminmax()):
                remedy = (
                    f"the model has the tokens 0 .. {vocab_size - 1} (vocab_size {vocab_size}); give only these ids"
                )
                require(0 <= ids < vocab_size, "batch", f"token {ids}", remedy)
        return tensors

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if not is_accumulating(self.trainer):
            self.window_losses.clear()

    def configure_callbacks(self) -> list[Callback]:
        """The default callbacks: metrics, reproducible dropout in resumed runs, and the test report with its checks."""
        from llp.default_callbacks import default_callbacks  # it imports this class

        there = {type(callback) for callback in untyped(self.trainer).callbacks}
        return [callback for callback in default_callbacks() if type(callback) not in there]

    def learning_rate_factor(self, step: int) -> float:
        """The learning rate of an optimizer step, as a fraction of `learning_rate`."""
        return self.optimization.factor(step, self.n_steps)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW with weight decay on linear weights only, and the learning rate as a function of the step."""
        self.n_steps = self.trainer.max_steps
        if self.optimization.schedule == "cosine" and self.n_steps < 1:
            estimated = self.trainer.estimated_stepping_batches  # only here, because it builds the loaders
            remedy = "the cosine needs its length, but epochs are unlimited; set it to the number of optimizer steps"
            require(0 < estimated < math.inf, "trainer.max_steps", self.n_steps, remedy)
            self.n_steps = int(estimated)
        optimization.warn_of_warmup(self.optimization.warmup_steps, self.n_steps)
        # Under automatic mixed precision Lightning refuses to clip the gradients of a fused step.
        optimizer = self.optimization.adamw(self.decoder, fused="mixed" not in str(self.trainer.precision))
        scheduler = LambdaLR(optimizer, self.learning_rate_factor)
        self.optimizer_settings = [
            {name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups
        ]
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    # Scoring

    def score_nats(self, batch: ScoringBatch) -> Tensor:
        """Loss in nats of every target: (B, S)."""
        return self.decoder.loss(batch.inputs, batch.targets).each

    def _nats(self, batch: Any, batch_idx: int) -> Tensor:
        """Loss in nats of every target of a batch from any loader: (B, S)."""
        if isinstance(batch, ScoringBatch):
            return self.score_nats(batch)
        return self.decoder.loss(*self._unpacked(batch, batch_idx)).each

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Add a batch to `score`: the predictions of its labels, or the losses of its targets."""
        if isinstance(self.score, LabelScore):
            self.score.update(self.decoder(batch.inputs, batch.positions), batch)
        elif isinstance(self.score, MeanLoss):
            self.score.update(self._nats(batch, batch_idx))
        else:
            self.score.update(self.score_nats(batch), batch)

    test_step = validation_step

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Loss in nats of every target of a batch: (B, S)."""
        return self._nats(batch, batch_idx)

    def on_validation_epoch_start(self) -> None:
        loader: Any = self.trainer.test_dataloaders if self.trainer.testing else self.trainer.val_dataloaders
        self.score = (loader.score() if hasattr(loader, "score") else MeanLoss()).to(self.device)

    on_test_epoch_start = on_validation_epoch_start

    def on_validation_epoch_end(self) -> None:
        self._log_score("val")

    def on_test_epoch_end(self) -> None:
        self._log_score("test")

    def _log_score(self, split: str) -> None:
        # The score is already summed over the ranks, so every rank logs the same metrics.
        metrics = {f"{split}/{name}": value for name, value in self.score.total().items()}
        is_fitting = self.trainer.state.fn == TrainerFn.FITTING
        # With None, they are logged if there is a logger; otherwise `Trainer.test` only returns them.
        self.log_dict(metrics, sync_dist=True, logger=False if is_fitting else None)
        # Under the step's own number, because Lightning's count can be one behind in a resumed run.
        if is_fitting and not self.trainer.sanity_checking:
            for logger in self.loggers:
                logger.log_metrics(metrics, self.trainer.global_step - 1)


def inputs_and_targets(batch: Batch) -> tuple[Tensor, ...]:
    """The arguments of the decoder's loss, from a batch in one of several forms.

    A batch can be
    - token ids (B, N + 1), each of which predicts the next; also as a list of one tensor, as from a `TensorDataset`;
    - inputs (B, N) and targets (B, S), the tokens after the last S inputs;
    - inputs (B, N), targets (B, S) and their positions (B, S), if other positions have a loss.

    Raises:
        SettingError: If the batch has another form.
    """
    tensors = (batch,) if isinstance(batch, Tensor) else batch
    remedy = "give token ids (B, N) of an integer type, or (inputs, targets)"
    is_list = isinstance(tensors, Sequence) and 1 <= len(tensors) <= 3
    require(is_list, "batch", type(batch).__name__, remedy)
    for tensor in tensors:
        is_ids = isinstance(tensor, Tensor) and tensor.ndim == 2 and not tensor.is_floating_point()
        shape = f"{tensor.dtype} {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__
        require(is_ids, "batch", shape, remedy)
    if len(tensors) > 1:
        return tuple(tensor.long() for tensor in tensors)
    tokens = tensors[0].long()
    remedy = "give two tokens or more per row: each predicts the next"
    require(tokens.shape[1] > 1, "batch", tuple(tokens.shape), remedy)
    return tokens[:, :-1], tokens[:, 1:]
