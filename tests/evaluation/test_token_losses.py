"""`llp predict`: the loss of every token as a table, against one pass of the model, on any number of ranks."""

import pyarrow.parquet as pq
import pytest
import torch

import llp
from helpers.slices_by_definition import slices_by_definition
from llp.atomic_files import checked_json

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
