"""`llp predict`: the loss of every token as a table, against one pass of the model, on any number of ranks."""

import resource
from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

import llp
from datamodules import Bytes, PythonReference
from helpers.prepared import attach
from helpers.slices_by_definition import slices_by_definition
from helpers.small_models import build
from llp.atomic_files import checked_json
from llp.evaluation.token_losses import TokenLosses

SCHEMA = {"document": "int32", "name": "string", "place": "int64", "token": "int32", "text": "string", "loss": "float"}


def test_each_token_has_a_row_with_its_loss(run, trained):
    status, out, err = run("predict", "--ckpt_path", trained / "checkpoints/last.ckpt")
    assert status == 0, err
    table = pq.read_table(trained / "token_losses.parquet")
    assert {field.name: str(field.type) for field in table.schema} == SCHEMA
    columns = table.to_pydict()

    text = (trained.parents[1] / "wikitext/wiki.test.tokens").read_bytes()
    model = llp.load(trained / "checkpoints/last.ckpt").module
    tokens = torch.tensor([[10, *text]])  # a line's end precedes the text
    with torch.no_grad():
        nats = model.decoder.loss(tokens[:, :-1], tokens[:, 1:]).each[0]
    assert columns["loss"] == pytest.approx(nats.tolist(), rel=1e-5)
    assert bytes(columns["token"]) == text
    assert columns["place"] == list(range(len(text)))
    assert set(columns["document"]) == {0}
    assert set(columns["name"]) == {"test"}
    assert columns["text"] == [chr(byte) if byte < 128 else "\ufffd" for byte in text]
    assert f"the loss of {len(text):,} of {len(text):,} tokens, in nats" in out

    content = checked_json((trained / "slices.json").read_text())
    assert content == slices_by_definition([[10, *text]], [columns["loss"]], window_len=32, stride=16)
    assert sum(entry["tokens"] for entry in content["position"]) == len(text)
    assert [entry["last"] for entry in content["recall"]] == [1, 2, 4, 8, 16, 32]

    assert run("predict", "--ckpt_path", trained / "checkpoints/last.ckpt")[0] == 0
    assert pq.read_table(trained / "token_losses-1.parquet").equals(table)  # the older ones keep numbered names
    assert checked_json((trained / "slices-1.json").read_text()) == content


def test_what_was_not_scored_has_no_row(run, trained):
    arguments = ("predict", "--ckpt_path", trained / "checkpoints/last.ckpt", "--trainer.limit_predict_batches")
    status, out, err = run(*arguments, 2)
    assert status == 0, err
    # Windows of 32, stride 16, four at a time: the first one alone, then four that score 16 tokens each.
    assert pq.read_table(trained / "token_losses.parquet")["place"].to_pylist() == list(range(80))
    assert "the loss of 80 of" in out
    content = checked_json((trained / "slices.json").read_text())
    assert sum(entry["tokens"] for entry in content["position"]) == 80
    assert sum(entry["tokens"] for entry in content["recall"]) + content["other"]["tokens"] == 80
    status, _, err = run(*arguments, 0)
    assert status == 1
    assert "trainer.limit_predict_batches = 0: set it above 0" in err


def test_a_full_disk_is_an_error_and_leaves_nothing(run, trained):
    before = {path.name for path in trained.iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, hard))
    try:
        status, out, err = run("predict", "--ckpt_path", trained / "checkpoints/last.ckpt")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert status == 1
    assert "File too large" in err
    assert "Traceback" not in err
    assert "Written" not in out
    assert {path.name for path in trained.iterdir()} == before


def test_several_ranks_write_one_table_in_the_order_of_the_text(tmp_path):
    """Each rank has a part of the batches; a loss here is a number of its token's place."""
    world_size, writers = 3, []
    for rank in range(world_size):
        data = PythonReference(cache_dir=str(tmp_path / "cache"), tokenizer=Bytes(), window_len=16, batch_size=64)
        data.prepare_data()
        data.setup("predict")
        model = build("LLP", vocab_size=257)
        attach(data, model, global_rank=rank, world_size=world_size)
        reduced = SimpleNamespace(reduce=lambda own, reduce_op: sum(writer._losses for writer, _, _ in writers))
        trainer = SimpleNamespace(
            predict_dataloaders=data.predict_dataloader(), datamodule=data, ckpt_path=None, default_root_dir=tmp_path,
            is_global_zero=rank == 0, strategy=reduced,
        )  # fmt: skip
        writers.append((TokenLosses(), trainer, model))
    for writer, trainer, model in writers:
        writer.on_predict_start(trainer, model)
        for number, windows in enumerate(trainer.predict_dataloaders.batches):
            rows = [range(w.stop - w.n_scored, w.stop) for w in windows]
            losses = [[w.document + place / 100_000 for place in row] for w, row in zip(windows, rows, strict=True)]
            writer.on_predict_batch_end(trainer, model, torch.tensor(losses), None, number)
    for writer, trainer, model in reversed(writers):
        writer.on_predict_end(trainer, model)

    columns = pq.read_table(tmp_path / "token_losses.parquet").to_pydict()
    texts = [b"".join(text.blocks) for text in data.texts("test")]
    assert bytes(columns["token"]) == b"".join(texts)
    assert columns["document"] == [number for number, text in enumerate(texts) for _ in text]
    assert columns["place"] == [place for text in texts for place in range(len(text))]
    names = [document.name for document in data.files["test"].documents]
    assert columns["name"] == [names[number] for number in columns["document"]]
    expected = np.array(columns["document"]) + np.array(columns["place"]) / 100_000
    np.testing.assert_array_equal(np.array(columns["loss"], np.float32), expected.astype(np.float32))
