"""The loss of every token: of a given text, or of a whole split as a table for other programs."""

import os
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from llp.atomic_files import run_folder, whole_file
from llp.errors import require
from llp.evaluation import recall
from llp.evaluation.loaders import TextData, TextLoader
from llp.evaluation.tables import aligned, write_json
from llp.scoring.windows import scoring_windows
from llp.text_model import TextModel

ROWS_IN_MEMORY = 1 << 19
_LEFT_OUT = -1.0  # the value of tokens that were not scored; a loss is never negative


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

    Beside it lie `slices.json`, the loss by position in the scoring window and on recall tokens by distance (see
    `loss_slices`), and `slices.png`, its plot.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        limit = trainer.limit_predict_batches
        is_used = stage != "predict" or (limit is not None and limit > 0)
        require(is_used, "trainer.limit_predict_batches", limit, "set it above 0")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loader = _loader(trainer)
        folder = run_folder(trainer.ckpt_path) if trainer.ckpt_path else Path(trainer.default_root_dir)
        self._path = folder / "token_losses.parquet"
        # Batches do not follow the order of the text: all ranks write their losses to a file first.
        self._losses = folder / ".token_losses.float32"
        if trainer.is_global_zero:
            _fill(self._losses, sum(document.tokens for document in loader.documents))
        trainer.strategy.barrier("token losses")
        # Neither a sparse file nor a memory map: a full disk is an error here, not a signal that kills the process.
        self._file = self._losses.open("r+b")

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        loader = _loader(trainer)
        losses = cast(Tensor, outputs).float().cpu().numpy()  # (B, S)
        for place, nats in zip(loader.positions(batch_idx), losses, strict=True):
            self._file.seek(place * nats.itemsize)
            self._file.write(nats.tobytes())

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._file.close()
        trainer.strategy.barrier("token losses")
        if not trainer.is_global_zero:
            return
        data: TextData = trainer.datamodule  # type: ignore[attr-defined]
        loader = _loader(trainer)
        texts = [data.tokenizer.decode([token]) for token in range(data.tokenizer.vocab_size)]
        plot = self._path.with_name("slices.png")
        with whole_file(self._path) as temporary, whole_file(plot) as temporary_plot:
            n_scored = _write_table(temporary, self._losses, loader, texts)
            slices = recall.loss_slices(self._losses, loader, _LEFT_OUT, getattr(pl_module, "segment_len", None))
            title = f"{type(pl_module).__name__}: {n_scored:,} tokens of {data.name}, {loader.split}"
            recall.plot(slices, title).savefig(temporary_plot, format="png", dpi=150)
            write_json(self._path.with_name("slices.json"), {**slices})  # last: after an error none of the files exists
        self._losses.unlink()
        n_tokens = sum(document.tokens for document in loader.documents)
        print("\n".join(aligned(recall.summary(slices), n_left=1)))
        print(f"Written to {self._path}: the loss of {n_scored:,} of {n_tokens:,} tokens, in nats")
        print(f"Written to {plot.with_suffix('.json')} and {plot}: by position and by distance of recall")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if trainer.is_global_zero and hasattr(self, "_losses"):
            self._losses.unlink(missing_ok=True)


def _loader(trainer: Trainer) -> TextLoader:
    return cast(TextLoader, trainer.predict_dataloaders)


def _fill(path: Path, n: int) -> None:
    """Write a file of `n` placeholders for losses."""
    with path.open("wb") as file:
        for first in range(0, n, ROWS_IN_MEMORY):
            file.write(np.full(min(ROWS_IN_MEMORY, n - first), _LEFT_OUT, np.float32).tobytes())
        file.flush()
        os.fsync(file.fileno())  # with delayed allocation, a full disk shows here


def _write_table(path: Path, losses: Path, loader: TextLoader, texts: list[str]) -> int:
    """Write the table, with `ROWS_IN_MEMORY` at a time; returns the number of rows.

    Args:
        path: The file to write.
        losses: File with a float32 for each token of the split, in the order of the text.
        loader: The scoring loader, which knows the text.
        texts: The text of each token of the vocabulary.
    """
    import pyarrow as pa  # half a second, and only this needs it
    import pyarrow.parquet as pq

    of_tokens, names = pa.array(texts), pa.array([document.name for document in loader.documents])
    schema = pa.schema(
        [
            ("document", pa.int32()),
            ("name", pa.string()),
            ("place", pa.int64()),
            ("token", pa.int32()),
            ("text", pa.string()),
            ("loss", pa.float32()),
        ]
    )
    first, n_scored = 0, 0
    with losses.open("rb") as file, pq.ParquetWriter(path, schema) as writer:
        while len(nats := np.frombuffer(file.read(4 * ROWS_IN_MEMORY), np.float32)):
            scored = np.flatnonzero(nats != _LEFT_OUT)
            documents, places, tokens = loader.scored_tokens(first + scored)
            columns = [documents, names.take(pa.array(documents)), places, tokens, of_tokens.take(pa.array(tokens))]
            writer.write_table(pa.table([*columns, nats[scored]], schema=schema))
            first, n_scored = first + len(nats), n_scored + len(scored)
    return n_scored
