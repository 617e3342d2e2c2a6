"""The loss of every token of a split, as a table for other programs, and the slices of the whole loss."""

import os
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from llp.atomic_files import run_folder, whole_file
from llp.errors import require
from llp.evaluation import slices
from llp.evaluation.tables import aligned, write_json

ROWS_IN_MEMORY = 1 << 19
_LEFT_OUT = -1.0  # where nothing was scored; a loss is never negative


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
    `Slices`), and `slices.png`, its picture.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        limit = trainer.limit_predict_batches
        require(stage != "predict" or limit > 0, "trainer.limit_predict_batches", limit, "set it above 0")

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loader: Any = trainer.predict_dataloaders
        folder = run_folder(trainer.ckpt_path) if trainer.ckpt_path else Path(trainer.default_root_dir)
        self._path = folder / "token_losses.parquet"
        # Batches do not follow the order of the text: all ranks write their losses alone to a file first.
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
        outputs: Tensor,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        loader: Any = trainer.predict_dataloaders
        for place, nats in zip(loader.positions(batch_idx), outputs.float().cpu().numpy(), strict=True):
            self._file.seek(place * nats.itemsize)
            self._file.write(nats.tobytes())

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._file.close()
        trainer.strategy.barrier("token losses")
        if trainer.is_global_zero:
            data: Any = trainer.datamodule  # type: ignore[attr-defined]
            loader: Any = trainer.predict_dataloaders
            texts = [data.tokenizer.decode([token]) for token in range(data.vocab_size)]
            picture = self._path.with_name("slices.png")
            with whole_file(self._path) as temporary, whole_file(picture) as temporary_picture:
                n_scored = write_table(temporary, self._losses, loader, texts)
                segment_len = getattr(pl_module, "segment_len", None)
                content = slices.slices_of(self._losses, loader, _LEFT_OUT, segment_len)
                title = f"{type(pl_module).__name__}: {n_scored:,} tokens of {data.name}, {loader.split}"
                slices.draw(content, title).savefig(temporary_picture, format="png", dpi=150)
                write_json(self._path.with_name("slices.json"), content)  # the last one: after an error none is there
            self._losses.unlink()
            n_tokens = sum(document.tokens for document in loader.documents)
            print("\n".join(aligned(slices.summary(content), n_left=1)))
            print(f"Written to {self._path}: the loss of {n_scored:,} of {n_tokens:,} tokens, in nats")
            print(f"Written to {picture.with_suffix('.json')} and {picture}: by position and by distance of recall")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if trainer.is_global_zero and hasattr(self, "_losses"):
            self._losses.unlink(missing_ok=True)


def _fill(path: Path, n: int) -> None:
    """Write a file of `n` placeholders for losses."""
    with path.open("wb") as file:
        for first in range(0, n, ROWS_IN_MEMORY):
            file.write(np.full(min(ROWS_IN_MEMORY, n - first), _LEFT_OUT, np.float32).tobytes())
        file.flush()
        os.fsync(file.fileno())  # with delayed allocation, a full disk shows here


def write_table(path: Path, losses: Path, loader: Any, texts: list[str]) -> int:
    """Write the table with a part of its rows in memory at a time; returns the number of rows.

    Args:
        path: The file to write.
        losses: File with a float32 for each token of the split, in the order of the text.
        loader: The scoring loader, which knows the text.
        texts: The text of each token of the vocabulary.
    """
    import pyarrow as pa  # half a second, and only this needs it
    import pyarrow.parquet as pq

    schema = pa.schema(
        {
            "document": pa.int32(),
            "name": pa.string(),
            "place": pa.int64(),
            "token": pa.int32(),
            "text": pa.string(),
            "loss": pa.float32(),
        }
    )
    names = pa.array([document.name for document in loader.documents])
    n_tokens, n_scored = sum(document.tokens for document in loader.documents), 0
    with losses.open("rb") as file, pq.ParquetWriter(path, schema) as writer:
        for first in range(0, n_tokens, ROWS_IN_MEMORY):
            nats = np.frombuffer(file.read(4 * ROWS_IN_MEMORY), np.float32)
            scored = first + np.flatnonzero(nats != _LEFT_OUT)
            documents, places, tokens = loader.scored_tokens(scored)
            columns = [
                pa.array(documents, pa.int32()),
                names.take(pa.array(documents)),
                pa.array(places),
                pa.array(tokens, pa.int32()),
                pa.array(texts).take(pa.array(tokens)),
                pa.array(nats[scored - first]),
            ]
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))
            n_scored += len(scored)
    return n_scored
