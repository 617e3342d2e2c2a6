"""The metrics of a report by hand: a whole split or a part of it, documents, official words, the unigram model."""

import csv
import hashlib
import math
import random
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml

from datamodules import PG19
from helpers import reference
from helpers.corpus import document, write_books
from helpers.small_models import build
from llp.atomic_files import checked_json
from llp.evaluation.report import format_table, scored_context, with_unigram
from llp.evaluation.tables import readable, write_csv, write_json
from llp.scoring.metric import Score, ScoringBatch

METRICS = ("loss", "perplexity", "word_perplexity", "bits_per_byte")


def metrics(nats, tokens, words, n_bytes):
    """The definitions, again."""
    return {
        "loss": nats / tokens,
        "perplexity": math.exp(nats / tokens),
        "word_perplexity": math.exp(nats / words),
        "bits_per_byte": nats / math.log(2) / n_bytes,
    }


# The metric

DOCUMENTS = [document("a", 100, 40, 600, plain_words=30), document("b", 50, 20, 300, plain_words=16)]


def scored(*batches, documents=DOCUMENTS, official_words=None):
    """A score of windows: (document, nats of each token) in each batch, all of one size there."""
    metric = Score(documents, official_words)
    for batch in batches:
        numbers, nats = torch.tensor([number for number, _ in batch]), torch.stack([nats for _, nats in batch])
        metric.update(nats, ScoringBatch(nats, nats, numbers))
    return metric


def ones(n):
    return torch.ones(n)


WHOLE = [[(0, ones(25)), (1, 2 * ones(25)), (0, ones(25))], [(1, 2 * ones(25)), (0, ones(25))], [(0, ones(25))]]
PART = WHOLE[:1] + WHOLE[2:]  # the first document whole but for a quarter, half of the second


def test_official_words_are_those_of_the_whole_split():
    """They stand in the row of the whole; a document has its own words, and so have whitespace-separated words."""
    for official, words in ((77, 77), (None, 60)):
        whole, a, b = scored(*WHOLE, official_words=official).rows()
        assert (whole["document"], a["document"], b["document"]) == (None, "a", "b")
        sizes = [(row["tokens"], row["words"], row["plain_words"], row["bytes"], row["nats"]) for row in (whole, a, b)]
        assert sizes == [(150, words, 46, 900, 200), (100, 40, 30, 600, 100), (50, 20, 16, 300, 100)]
        for row, expected in ((whole, (200, 150, words, 900)), (a, (100, 100, 40, 600)), (b, (100, 50, 20, 300))):
            assert {name: row[name] for name in METRICS} == pytest.approx(metrics(*expected))
        assert whole["plain_word_perplexity"] == pytest.approx(math.exp(200 / 46))
        assert b["plain_word_perplexity"] == pytest.approx(math.exp(100 / 16))


def test_a_part_of_a_split_has_no_official_words():
    """Also where only one of its documents is not whole: each has words and bytes in proportion to its tokens."""
    metric = scored(*PART, official_words=77)
    whole, a, b = metric.rows()
    sizes = [(row["tokens"], row["words"], row["plain_words"], row["bytes"], row["nats"]) for row in (whole, a, b)]
    # Of a 75 of 100 tokens: 30 of 40 words, 22.5 of 30; of b 25 of 50: 10 of 20 words, 8 of 16.
    assert sizes == [(100, 40, 30, 600, 125), (75, 30, 22, 450, 75), (25, 10, 8, 150, 50)]
    assert {name: whole[name] for name in METRICS} == pytest.approx(metrics(125, 100, 40, 600))
    assert metric.total() == pytest.approx(metrics(125, 100, 40, 600))
    whole, _, b = scored(*WHOLE[2:], WHOLE[1][1:], official_words=77).rows()  # of b nothing at all
    assert (whole["tokens"], whole["words"]) == (50, 20)
    assert (b["tokens"], b["words"], b["bytes"]) == (0, 0, 0)
    assert math.isnan(b["loss"])
    assert math.isnan(b["bits_per_byte"])


def test_nats_are_summed_in_float64():
    """In float32 the ones beside a hundred million are lost, within a window, over windows and over documents."""
    nats = torch.tensor([1e8, 1, 1, 1])
    metric = scored([(0, nats)], [(0, nats)], [(1, ones(4))])
    assert metric.compute() == ([2e8 + 6, 4.0], [8, 4])
    assert metric.rows()[0]["nats"] == 2e8 + 10
    documents = [document(name, 1, 1, 1) for name in "abc"]
    values = [torch.tensor([value], dtype=torch.float64) for value in (1e16, 1, 1)]  # 1e16 + 1 is 1e16 again
    assert scored([*enumerate(values)], documents=documents).rows()[0]["nats"] == 1e16 + 2


# The rows of the report


@pytest.mark.parametrize(
    ("name", "settings", "shapes", "expected"),
    [
        # (10, 4): 7 + 8 + 9 + 10 = 34, twice; (10, 3): 8 + 9 + 10 = 27, five times; (6, 2): 5 + 6; (2, 2): 1 + 2
        ("Transformer", {}, {(10, 4, True): 2, (10, 3, False): 5, (6, 2, False): 1, (2, 2, True): 1},
         (5, (2 * 34 + 5 * 27 + 11 + 3) / (8 + 15 + 2 + 2), 10)),
        ("Transformer", {}, {(6, 2, False): 1, (10, 3, False): 5}, (5, (11 + 5 * 27) / 17, 10)),
        ("Transformer", {}, {(7, 7, True): 3}, (None, 4.0, 7)),
        ("SlidingWindow", {"n_layers": 2}, {(6, 6, True): 1, (12, 6, False): 1}, (7, (21 + 7 + 8 + 4 * 9) / 12, 9)),
    ],
)  # fmt: skip
def test_context_of_scored_tokens(name, settings, shapes, expected):
    found = scored_context(build(name, **settings).geometry, shapes)
    assert [*found.values()] == [pytest.approx(value) for value in expected]


def test_the_table():
    rows = [{"split": "test", **row} for row in with_unigram(scored(*WHOLE).rows(), [300.0, 200.0])]
    protocol = {
        "architecture": "some.where.Model",
        "complete": True,
        "window_len": 2048,
        "stride": 1024,
        "word_count": "as they come",
        "context_least": 1025,
        "context_mean": 1234.56,
        "context_greatest": 2048,
        "certificate": {
            **{"causal": True, "probes": [{"length": 9, "positions": [3, 8]}]},
            **{"whole_window": 7, "read": 12, "scored": [[9, 4]]},
        },
    }
    lines = format_table(rows, protocol).splitlines()
    cells = [line.split() for line in lines]
    assert cells[0] == ["split", "document", "model", "tokens", "words", "bytes", *METRICS]
    assert set(lines[1]) == {"-"}
    own = [f"{value:,.4f}" for value in metrics(200, 150, 60, 900).values()]
    assert cells[2] == ["test", "(all)", "Model", "150", "60", "900", *own]
    assert cells[3] == ["unigram", *(f"{value:,.4f}" for value in metrics(500, 150, 60, 900).values())]
    text = "\n".join(lines[8:])
    assert "Windows of 2,048 tokens, stride 1,024: a token is predicted from 1,234.6 tokens on average" in text
    assert "average, from at most 2,048, and after a document's first window from at least 1,025." in text
    assert "Words: as they come." in text
    assert f"whitespace-separated words (46), the word perplexity is {math.exp(200 / 46):,.4f}" in text
    assert "Probed for causality at every position of a window of 7 tokens, and at 2 positions" in text
    protocol |= {"context_least": None, "context_mean": 3.0, "context_greatest": 5, "certificate": {"causal": None}}
    rows = [{"split": "test", **row} for row in scored([(0, ones(100))], documents=[document("a", 100, 7, 600)]).rows()]
    text = format_table(rows, protocol)
    assert "a token is predicted from 3.0 tokens on average, from at most 5." in text
    assert "whitespace-separated words" not in text  # they are the same
    assert "NOT probed" in text


@pytest.mark.parametrize(("n_documents", "n_shown", "n_more"), [(1, 1, 0), (10, 10, 0), (11, 10, 1)])
def test_the_table_shows_ten_documents_and_says_where_the_others_are(n_documents, n_shown, n_more):
    """Documents of which nothing was scored are left out."""
    documents = [document(f"document {number}", 1, 1, 1) for number in range(-1, n_documents)]
    metric = scored(*([(number, ones(1))] for number in range(1, n_documents + 1)), documents=documents)
    protocol = {"architecture": "llp.LLP", "complete": False, "window_len": 64, "stride": 32, "word_count": "words"}
    text = format_table([{"split": "test", **row} for row in metric.rows()], protocol)
    shown = [f"document {number} " in text for number in range(-1, n_documents)]
    assert shown == [False] + [True] * n_shown + [False] * n_more
    assert (f"\n… and {n_more} more in test.csv\n" in text) == ("more in" in text) == (n_more > 0)
    assert "(part)" in text
    assert "(all)" not in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (12_000_000_000, "12,000,000,000"),  # a count is exact
        (3_612_321.7625, "3,612,321.7625"),
        (999_999_999.0, "999,999,999.0000"),
        (1e9, "1.0e9"),
        (9.97e300, "1.0e301"),
        (math.inf, "inf"),
        (math.nan, "nan"),
    ],
)
def test_numbers_of_any_size_are_short(value, text):
    assert readable(value) == text


# Files


def test_files_are_whole_and_older_ones_kept(tmp_path):
    path = tmp_path / "test.json"
    for number in range(3):
        assert write_json(path, {"number": number, "values": [1.5, math.nan, math.inf, {"deep": -math.inf}]}) == path
    assert {file.name for file in tmp_path.iterdir()} == {"test.json", "test-1.json", "test-2.json"}
    assert checked_json(path.read_text()) == {"number": 2, "values": [1.5, None, None, {"deep": None}]}
    assert [checked_json((tmp_path / f"test-{n}.json").read_text())["number"] for n in (1, 2)] == [0, 1]
    rows = [{"document": "a, b", "loss": 0.5}, {"document": None, "loss": math.nan}]
    with write_csv(tmp_path / "test.csv", rows).open(newline="") as stream:
        assert [*csv.DictReader(stream)] == [{"document": "a, b", "loss": "0.5"}, {"document": "", "loss": "nan"}]


# The command


@pytest.fixture
def books(work):
    """A folder in PG-19's layout, with books of several and of less than one scoring window."""
    rng, folder = random.Random(0), work / "books"
    lengths = {"train": {1: 400, 2: 300}, "validation": {3: 40}, "test": {10: 12, 9: 3, 11: 7}}
    texts = {
        split: {
            number: "".join("".join(rng.choices("abc é", k=5)) + rng.choice(" \n") for _ in range(n_words))
            for number, n_words in of_split.items()
        }
        for split, of_split in lengths.items()
    }
    write_books(folder, texts)
    config = yaml.safe_load((work / "tiny.yaml").read_text())
    config["data"]["class_path"] = "datamodules.PG19"
    config["data"]["init_args"]["path"] = str(folder)
    (work / "books.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_a_report_of_books_by_brute_force(run, work, books, monkeypatch):
    """Losses from the weights alone, in one pass over each book; counts, contexts and unigram model by hand."""
    monkeypatch.setattr(PG19, "official_words", lambda self, split: {"validation": 1, "test": 300}[split])
    status, _, err = run("fit", "--config", "books.yaml", "--name", "run")
    assert status == 0, err
    folder = work / "lightning_logs/run"
    checkpoint = folder / "checkpoints/best.ckpt"
    status, out, err = run("test", "--ckpt_path", folder, "--trainer.precision", "64-true")
    assert status == 0, err
    assert {path.name for path in folder.parent.iterdir()} == {"run"}  # a test makes no run of its own
    content = checked_json((folder / "test.json").read_text())
    whole, *rows = content["rows"]

    saved = torch.load(checkpoint, weights_only=True)["state_dict"]
    weights = {name.removeprefix("decoder."): weight.double() for name, weight in saved.items()}
    counts = Counter(b"".join((books / f"train/{number}.txt").read_bytes() for number in (1, 2)))
    total = sum(counts.values()) + 257
    sums, contexts = np.zeros(4), []
    for number, row in zip((9, 10, 11), rows, strict=True):
        text = (books / f"test/{number}.txt").read_bytes()  # a token is a byte, and a book begins with token 256
        n, n_words = len(text), len(text.split())
        logits = reference.logits(weights, [256, *text[:-1]], 2, 2, reference.llp_sees(8))
        nats = F.cross_entropy(logits, torch.tensor([*text]), reduction="sum").item()
        unigram = -sum(math.log((counts[byte] + 1) / total) for byte in text)
        assert row["document"] == f"Book ({number})"
        check_row(row, nats, unigram, n, n_words, n_words)
        sums += nats, unigram, n, n_words
        contexts += [i + 1 - max(0, (i // 8 - 2) * 8) for i in range(n)]  # two segments of 8, and the own one
    nats, unigram, n, n_words = sums
    assert whole["document"] is None
    check_row(whole, nats, unigram, n, 300, n_words)
    assert whole["plain_word_perplexity"] == pytest.approx(math.exp(nats / n_words), rel=1e-12)
    assert f"{whole['bits_per_byte']:,.4f}" in out
    assert f"{whole['unigram_loss']:,.4f}" in out
    assert "PARTIAL" not in out

    protocol = content["protocol"]
    assert protocol["checkpoint_sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    seconds = protocol["training_seconds"]
    assert 0 < seconds < 60
    assert protocol == protocol | {
        **{"architecture": "llp.LLP", "checkpoint": str(checkpoint), "precision": "64-true", "complete": True},
        **{"step": 6, "seed": 0, "official_words": 300, "tokenizer_fingerprint": "bytes"},
        **{"window_len": 32, "stride": 16, "context_least": 17, "context_greatest": max(contexts)},
        "parameters": sum(weight.numel() for weight in weights.values()),
        **{"windows_per_step": 4, "training_window_len": 32, "trained_tokens": 6 * 4 * 32},
    }
    assert protocol["context_mean"] == pytest.approx(sum(contexts) / n)
    assert protocol["hyperparameters"]["segment_len"] == 8
    assert {"data_fingerprint", "versions", "git_commit"} <= protocol.keys()


def check_row(row, nats, unigram, n, n_words, n_plain_words):
    """Of bytes that are tokens."""
    assert (row["tokens"], row["bytes"], row["words"], row["plain_words"]) == (n, n, n_words, n_plain_words)
    expected = {"nats": nats, **metrics(nats, n, n_words, n)}
    expected |= {f"unigram_{key}": value for key, value in metrics(unigram, n, n_words, n).items()}
    assert {key: row[key] for key in expected} == pytest.approx(expected, rel=1e-12)
