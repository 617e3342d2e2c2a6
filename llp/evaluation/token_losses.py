"""The loss of every token: of a given text, or of a whole split as a table for other programs."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from llp.atomic_files import run_folder, whole_file
from llp.errors import require
from llp.evaluation.recall import loss_slices
from llp.evaluation.tables import write_json
from llp.scoring.windows import scoring_windows
from llp.text_model import TextModel

if TYPE_CHECKING:
    from datamodules.loaders import ScoringLoader
    from datamodules.text import TextDataModule


class TokenLoss(NamedTuple):
    """A token's text and its loss in nats; each token of a multi-token character reads as U+FFFD."""

    text: str
    nats: float


@torch.inference_mode()
def text_losses(model: TextModel, text: str) -> list[TokenLoss]:
    """Score a text like a benchmark's document: every token exactly once, in the model's scoring windows.

    Args:
        model: The model with its tokenizer, in evaluation mode.
        text: Any string.
    """
    tokens = model.tokens(text)  # (1, N + 1)
    losses: list[TokenLoss] = []
    for window in scoring_windows(0, tokens.shape[1] - 1, *model.window):
        piece = tokens[:, window.start : window.stop + 1]
        targets = piece[:, piece.shape[1] - window.n_scored :]  # (1, S)
        nats = model.module.decoder.loss(piece[:, :-1], targets).each[0].double().tolist()
        pairs = zip(targets[0].tolist(), nats, strict=True)
        losses += [TokenLoss(model.tokenizer.decode([token]), loss) for token, loss in pairs]
    return losses


class TokenLosses(Callback):
    """`llp predict`: the loss of every token of the test split, in the order of the text.

    Written to `token_losses.parquet` in the run's folder, whole or not at all; an older file is kept under a numbered
    name. It has one row per scored token, and none for tokens that a limited number of batches leaves out:

    - `document` (int32): index of the document, from 0, in the order of `test.csv`; `name` (string): its name;
    - `place` (int64): the token's position in the document, from 0;
    - `token` (int32): the token's id; `text` (string): its text. Each token of a character that is made up of several
      has the replacement character U+FFFD;
    - `loss` (float32): minus the log of the token's probability, in nats.

    Beside it lies `slices.json`, the loss by position in the scoring window and on recall tokens by distance (see
    `loss_slices`).
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        limit = trainer.limit_predict_batches
        is_used = stage != "predict" or (limit is not None and limit > 0)
        require(is_used, "trainer.limit_predict_batches", limit, "set it above 0")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        n_tokens = sum(document.tokens for document in _loader(trainer).documents)
        self._losses = torch.zeros(2, n_tokens, device=pl_module.device)  # of each token, and 1 if it was scored

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: object,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        losses = cast(Tensor, outputs).float()  # (B, S)
        for first, nats in zip(_loader(trainer).positions(batch_idx), losses, strict=True):
            self._losses[0, first : first + len(nats)] = nats
            self._losses[1, first : first + len(nats)] = 1

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        nats, scored = trainer.strategy.reduce(self._losses, reduce_op="sum").cpu().numpy()  # each rank has its batches
        if not trainer.is_global_zero:
            return
        scored, loader = scored.astype(bool), _loader(trainer)
        data: TextDataModule = trainer.datamodule  # type: ignore[attr-defined]
        texts = [data.tokenizer.decode([token]) for token in range(data.tokenizer.vocab_size)]
        folder = run_folder(trainer.ckpt_path) if trainer.ckpt_path else Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "token_losses.parquet"
        with whole_file(path) as temporary:
            _write_table(temporary, nats, scored, loader, texts)
            # Last: after an error neither of the files exists.
            slices = write_json(folder / "slices.json", {**loss_slices(nats, scored, loader)})
        print(f"Written to {path}: the loss of {scored.sum():,} of {len(scored):,} tokens, in nats")
        print(f"Written to {slices}: by position and by distance of recall")


def _loader(trainer: Trainer) -> "ScoringLoader":
    return cast("ScoringLoader", trainer.predict_dataloaders)


def _write_table(path: Path, nats: np.ndarray, scored: np.ndarray, loader: "ScoringLoader", texts: list[str]) -> None:
    """Write the table of the tokens that were scored.

    Args:
        path: The file to write.
        nats: (N,) float32, the loss of each token of the split, in the order of the text.
        scored: (N,) booleans.
        loader: The scoring loader, which knows the text.
        texts: The text of each token of the vocabulary.
    """
    import pyarrow as pa  # half a second, and only this needs it
    import pyarrow.parquet as pq

    documents, places, tokens = loader.scored_tokens(np.flatnonzero(scored))
    names = pa.array([document.name for document in loader.documents])
    columns = {
        "document": pa.array(documents, pa.int32()),
        "name": names.take(pa.array(documents)),
        "place": pa.array(places, pa.int64()),
        "token": pa.array(tokens, pa.int32()),
        "text": pa.array(texts).take(pa.array(tokens)),
        "loss": pa.array(nats[scored], pa.float32()),
    }
    pq.write_table(pa.table(columns), path)
