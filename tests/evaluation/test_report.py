"""The figures of a report by hand: a whole split or a part of it, documents, official words, the unigram model."""

import csv
import hashlib
import math
import shutil
import subprocess
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
import yaml
from lightning.pytorch.trainer.states import TrainerFn

import llp
from datamodules import TextFiles
from helpers.documents import Document
from helpers.small_models import build
from llp.atomic_files import checked_json
from llp.errors import SettingError
from llp.evaluation.causality_check import CausalityCheck
from llp.evaluation.report import TestReport, scored_context, with_unigram
from llp.evaluation.tables import aligned, format_table, write_csv, write_json
from llp.scoring.metric import Score, ScoringBatch
from llp.training import software
from llp.training.software import git_commit

FIGURES = ("loss", "perplexity", "word_perplexity", "bits_per_byte")


def figures(nats, tokens, words, n_bytes):
    """The definitions, again."""
    return {
        "loss": nats / tokens,
        "perplexity": math.exp(nats / tokens),
        "word_perplexity": math.exp(nats / words),
        "bits_per_byte": nats / math.log(2) / n_bytes,
    }


# The metric

DOCUMENTS = [Document("a", 100, 40, 600, plain_words=30), Document("b", 50, 20, 300, plain_words=16)]


def scored(*batches, documents=DOCUMENTS, official_words=None):
    """A score of windows: (document, nats of each token) in each batch, all of one size there."""
    metric = Score(documents, official_words)
    for batch in batches:
        nats = torch.stack([nats for _, nats in batch])
        metric.update(nats, ScoringBatch(nats, nats, torch.tensor([number for number, _ in batch])))
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
            assert {name: row[name] for name in FIGURES} == pytest.approx(figures(*expected))
        assert whole["plain_word_perplexity"] == pytest.approx(math.exp(200 / 46))
        assert b["plain_word_perplexity"] == pytest.approx(math.exp(100 / 16))


def test_a_part_of_a_split_has_no_official_words():
    """Also where only one of its documents is not whole: each has words and bytes in proportion to its tokens."""
    metric = scored(*PART, official_words=77)
    whole, a, b = metric.rows()
    sizes = [(row["tokens"], row["words"], row["plain_words"], row["bytes"], row["nats"]) for row in (whole, a, b)]
    # Of a 75 of 100 tokens: 30 of 40 words, 22.5 of 30; of b 25 of 50: 10 of 20 words, 8 of 16.
    assert sizes == [(100, 40, 30, 600, 125), (75, 30, 22, 450, 75), (25, 10, 8, 150, 50)]
    assert {name: whole[name] for name in FIGURES} == pytest.approx(figures(125, 100, 40, 600))
    assert metric.total() == pytest.approx(figures(125, 100, 40, 600))
    whole, _, b = scored(*WHOLE[2:], WHOLE[1][1:], official_words=77).rows()  # of b nothing at all
    assert (whole["tokens"], whole["words"]) == (50, 20)
    assert (b["tokens"], b["words"], b["bytes"]) == (0, 0, 0)
    assert math.isnan(b["loss"])
    assert math.isnan(b["bits_per_byte"])


def test_a_text_without_tokens_has_no_figure():
    _, _, b = scored(WHOLE[2]).rows()
    assert all(math.isnan(b[name]) for name in (*FIGURES, "plain_word_perplexity"))


def test_a_single_document_is_the_whole():
    (row,) = scored([(0, ones(100))], documents=DOCUMENTS[:1], official_words=50).rows()
    assert (row["document"], row["words"]) == (None, 50)


def test_an_empty_document_counts_for_nothing():
    whole, _, empty = scored([(0, ones(100))], documents=[DOCUMENTS[0], Document("c", 0, 0, 0, 0)]).rows()
    assert (whole["tokens"], whole["loss"]) == (100, 1)
    assert (empty["tokens"], empty["nats"]) == (0, 0)
    assert math.isnan(empty["loss"])


def test_nats_are_summed_in_float64():
    """In float32 the ones beside a hundred million are lost, within a window, over windows and over documents."""
    nats = torch.tensor([1e8, 1, 1, 1])
    metric = scored([(0, nats)], [(0, nats)], [(1, ones(4))])
    assert metric.compute() == ([2e8 + 6, 4.0], [8, 4])
    assert metric.rows()[0]["nats"] == 2e8 + 10
    documents = [Document(name, 1, 1, 1) for name in "abc"]
    values = [torch.tensor([value], dtype=torch.float64) for value in (1e16, 1, 1)]  # 1e16 + 1 is 1e16 again
    assert scored([*enumerate(values)], documents=documents).rows()[0]["nats"] == 1e16 + 2


def test_a_perplexity_is_finite_while_a_float_can_be():
    (row,) = scored([(0, 600 * ones(100))], documents=[Document("a", 100, 50, 9)]).rows()
    assert row["perplexity"] == pytest.approx(math.exp(600))
    assert row["word_perplexity"] == math.inf


# The rows of the report


def test_the_unigram_model_beside_the_model():
    rows = scored(*WHOLE, official_words=77).rows()
    whole, a, b = with_unigram(rows, [300.0, 200.0])
    for row, expected in ((whole, (500, 150, 77, 900)), (a, (300, 100, 40, 600)), (b, (200, 50, 20, 300))):
        got = {name: row[f"unigram_{name}"] for name in FIGURES}
        assert got == pytest.approx(figures(*expected))
    assert whole["loss"] == rows[0]["loss"]
    (single,) = with_unigram(scored([(0, ones(100))], documents=DOCUMENTS[:1]).rows(), [250.0])
    assert single["unigram_loss"] == 2.5


class Dense:
    """Each position is predicted from all of its window."""

    def context_lens(self, n):
        return torch.arange(1, n + 1)


def test_context_of_scored_tokens():
    shapes = Counter({(10, 4, True): 2, (10, 3, False): 5, (6, 2, False): 1, (2, 2, True): 1})
    # (10, 4): 7 + 8 + 9 + 10 = 34, twice; (10, 3): 8 + 9 + 10 = 27, five times; (6, 2): 5 + 6; (2, 2): 1 + 2
    mean = (2 * 34 + 5 * 27 + 11 + 3) / (8 + 15 + 2 + 2)
    expected = {"context_least": 5, "context_mean": pytest.approx(mean), "context_greatest": 10}
    assert scored_context(Dense(), shapes) == expected
    assert scored_context(Dense(), Counter({(6, 2, False): 1, (10, 3, False): 5}))["context_least"] == 5
    single = {"context_least": None, "context_mean": 4.0, "context_greatest": 7}
    assert scored_context(Dense(), Counter({(7, 7, True): 3})) == single
    sliding = build("SlidingWindow", n_layers=2)  # of 5 positions: a reach of 8
    found = scored_context(sliding, Counter({(6, 6, True): 1, (12, 6, False): 1}))
    assert found == {"context_least": 7, "context_mean": (21 + 7 + 8 + 4 * 9) / 12, "context_greatest": 9}


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
        "certificate": {"causal": True},
    }
    lines = format_table(rows, protocol).splitlines()
    cells = [line.split() for line in lines]
    assert cells[0] == ["split", "document", "model", "tokens", "words", "bytes", *FIGURES]
    assert set(lines[1]) == {"-"}
    assert len(lines[1]) == max(len(line) for line in lines[:8])
    own = [f"{value:,.4f}" for value in figures(200, 150, 60, 900).values()]
    assert cells[2] == ["test", "(all)", "Model", "150", "60", "900", *own]
    assert cells[3] == ["unigram", *(f"{value:,.4f}" for value in figures(500, 150, 60, 900).values())]
    assert cells[4][:6] == ["test", "a", "Model", "100", "40", "600"]
    assert cells[6][:6] == ["test", "b", "Model", "50", "20", "300"]
    for own, unigram in (lines[2:4], lines[4:6], lines[6:8]):  # a figure stands under a figure
        assert len(own) == len(unigram)
    text = "\n".join(lines[8:])
    assert "Windows of 2,048 tokens, stride 1,024: a token is predicted from at least 1,025 tokens after" in text
    assert "first window, from 1,234.6 tokens on average, and from at most 2,048." in text
    assert "Words: as they come." in text
    assert f"whitespace-separated words (46), the word perplexity is {math.exp(200 / 46):,.4f}" in text
    assert "Certified: no logit" in text
    # Without what a part of a split can't know, and without a certificate.
    for key in ("context_least", "context_mean", "context_greatest", "certificate"):
        del protocol[key]
    rows = [{"split": "test", **row} for row in scored([(0, ones(100))], documents=[Document("a", 100, 7, 600)]).rows()]
    text = format_table(rows, protocol)
    assert "unigram" not in text
    assert "predicted from" not in text
    assert "whitespace-separated words" not in text  # they are the same
    assert "ertified" not in text
    protocol |= {"context_least": None, "context_mean": 3.0, "context_greatest": 5, "certificate": {"causal": None}}
    text = format_table(rows, protocol)
    assert "a token is predicted from 3.0 tokens on average, and from at most 5." in text
    assert "NOT certified" in text


def test_columns_are_aligned():
    table = [["a", "name", "1"], ["long", "b", "1,000"], ["", "c", ""]]
    assert aligned(table, n_left=2) == ["a     name      1", "long  b     1,000", "      c"]


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


def test_a_report_that_can_not_be_written_leaves_the_older_one(tmp_path, monkeypatch):
    path = write_json(tmp_path / "test.json", {"number": 0})
    monkeypatch.setattr(Path, "write_text", lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(OSError, match="No space left"):
        write_json(path, {"number": 1})
    assert [file.name for file in tmp_path.iterdir()] == ["test.json"]


@pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")
def test_the_commit_is_that_of_the_source(tmp_path, monkeypatch):
    """With a mark where files differ from it; none for a copy outside of git or inside somebody else's repository."""

    def git(*arguments):
        identity = ("-c", "user.name=n", "-c", "user.email=e")
        done = subprocess.run(["git", *identity, *arguments], cwd=tmp_path, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    source = tmp_path / "report.py"
    source.write_text("one")
    monkeypatch.setattr(software, "__file__", str(source))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert git_commit() is None
    git("init")
    assert git_commit() is None
    git("add", "report.py")
    git("commit", "-m", "one")
    git("tag", "-a", "v1", "-m", "a name that is not the commit's")
    assert git_commit() == git("rev-parse", "HEAD")
    source.write_text("two")
    assert git_commit() == git("rev-parse", "HEAD") + "-dirty"
    monkeypatch.setattr(software, "__file__", str(tmp_path / "installed.py"))
    assert git_commit() is None


# The command


def nats_of(checkpoint, tokens):
    """The loss of each token of a text in one pass over it: LLP's windows hold its reach."""
    saved = torch.load(checkpoint, weights_only=True)
    model = llp.LLP(**saved["hyper_parameters"])
    model.configure_model()
    model.load_state_dict(saved["state_dict"])
    row = torch.tensor(tokens)
    with torch.no_grad():
        logits = model.double().eval()(row[None, :-1])[0]
        return F.cross_entropy(logits, row[1:], reduction="none")


def test_a_partial_report_by_hand(run, trained):
    """Windows of one length make a batch: the first is alone, then come four. They score the first 80 tokens."""
    checkpoint = trained / "checkpoints/best.ckpt"
    status, out, err = run("test", "--ckpt_path", checkpoint, "--trainer.limit_test_batches", 2)
    assert status == 0, err
    text = (trained.parents[1] / "wikitext/wiki.test.tokens").read_bytes()
    n = len(text)
    words, plain_words = (len(text.decode().split()) + n_ends for n_ends in (text.count(b"\n"), 0))
    nats = nats_of(checkpoint, [10, *text])[:80].sum().item()
    content = checked_json((trained / "test.json").read_text())
    (row,), protocol = content["rows"], content["protocol"]
    assert (row["split"], row["document"]) == ("test", None)
    assert (row["tokens"], row["bytes"], row["words"]) == (80, 80, round(words * 80 / n))  # a token is a byte
    assert row["plain_words"] == round(plain_words * 80 / n)
    assert n > 800
    assert row["nats"] == pytest.approx(nats, rel=1e-6)
    assert {name: row[name] for name in FIGURES} == pytest.approx(figures(nats, 80, row["words"], 80), rel=1e-5)
    assert row["plain_word_perplexity"] == pytest.approx(math.exp(nats / row["plain_words"]), rel=1e-5)
    assert not [key for key in row if "unigram" in key]
    assert not [key for key in protocol if "context" in key]
    assert protocol["complete"] is False
    assert protocol["certificate"]["causal"] is True
    assert f"PARTIAL: 80 of {n:,} tokens were scored; words and bytes are scaled in proportion." in out
    assert f"{row['bits_per_byte']:,.4f}" in out


@pytest.fixture
def library(work):
    """Text of several documents, and a run on it."""
    words = (work / "wikitext/wiki.train.tokens").read_text(encoding="utf-8").split()
    texts = {"train": {"long": 1500}, "validation": {"one": 60}, "test": {"a": 40, "b": 3, "c": 200}}
    for split, members in texts.items():
        (work / "library" / split).mkdir(parents=True)
        for name, n_words in members.items():
            content = " ".join(words[:n_words]) + "\n"
            (work / f"library/{split}/{name}.txt").write_text(content, encoding="utf-8")
    config = yaml.safe_load((work / "tiny.yaml").read_text())
    config["data"]["class_path"] = "datamodules.TextFiles"
    config["data"]["init_args"]["path"] = str(work / "library")
    config["trainer"]["max_steps"] = 2
    (work / "library.yaml").write_text(yaml.safe_dump(config))
    return work / "library"


def test_a_report_of_several_documents_by_hand(run, work, library, monkeypatch):
    monkeypatch.setattr(TextFiles, "official_words", lambda self, split: {"validation": 1, "test": 300}[split])
    assert run("fit", "--config", "library.yaml", "--name", "run")[0] == 0
    folder = work / "lightning_logs/run"
    checkpoint = folder / "checkpoints/last.ckpt"
    status, out, err = run("test", "--ckpt_path", checkpoint)
    assert status == 0, err
    content = checked_json((folder / "test.json").read_text())
    whole, *rows = content["rows"]
    protocol = content["protocol"]
    assert protocol["complete"] is True
    assert protocol["checkpoint_sha256"] == hashlib.sha256(checkpoint.read_bytes()).hexdigest()
    assert (protocol["checkpoint"], protocol["precision"]) == (str(checkpoint), "32-true")
    assert (protocol["step"], protocol["seed"], protocol["official_words"]) == (2, 0, 300)
    assert protocol["hyperparameters"]["segment_len"] == 8

    counts = Counter((library / "train/long.txt").read_bytes())
    total = sum(counts.values()) + 257
    sums = [0.0, 0.0, 0, 0]
    contexts = []
    for name, row in zip("abc", rows, strict=True):
        text = (library / f"test/{name}.txt").read_bytes()
        n, n_words = len(text), len(text.split())
        nats = nats_of(checkpoint, [256, *text]).sum().item()
        unigram = -sum(math.log((counts[byte] + 1) / total) for byte in text)
        assert row["document"] == f"test/{name}.txt"
        assert (row["tokens"], row["bytes"], row["words"], row["plain_words"]) == (n, n, n_words, n_words)
        assert {key: row[key] for key in FIGURES} == pytest.approx(figures(nats, n, n_words, n), rel=1e-5)
        expected = {f"unigram_{key}": value for key, value in figures(unigram, n, n_words, n).items()}
        assert {key: row[key] for key in expected} == pytest.approx(expected, rel=1e-9)
        sums = [so_far + more for so_far, more in zip(sums, (nats, unigram, n, n_words), strict=True)]
        contexts += [i + 1 - max(0, (i // 8 - 2) * 8) for i in range(n)]
    nats, unigram, n, n_words = sums
    assert (whole["document"], whole["tokens"], whole["words"], whole["plain_words"]) == (None, n, 300, n_words)
    assert {key: whole[key] for key in FIGURES} == pytest.approx(figures(nats, n, 300, n), rel=1e-5)
    expected = {f"unigram_{key}": value for key, value in figures(unigram, n, 300, n).items()}
    assert {key: whole[key] for key in expected} == pytest.approx(expected, rel=1e-9)
    assert whole["plain_word_perplexity"] == pytest.approx(math.exp(nats / n_words), rel=1e-5)
    assert protocol["context_mean"] == pytest.approx(sum(contexts) / n)
    assert protocol["context_greatest"] == max(contexts)
    assert "PARTIAL" not in out

    status, out, err = run("validate", "--ckpt_path", checkpoint)  # which probes nothing, and says nothing of it
    assert status == 0, err
    assert "ertified" not in out
    assert "unigram" in out

    status, out, err = run("test", "--ckpt_path", checkpoint, "--trainer.limit_test_batches", 1)
    assert status == 0, err
    row = checked_json((folder / "test.json").read_text())["rows"][0]
    assert row["words"] == row["plain_words"] < 300  # counted ones, in proportion
    assert "PARTIAL" in out


# When and where


class Reported:
    """A scored split of two documents, 100 and 50 tokens; everything that the report asks is a stand-in."""

    def __init__(self, monkeypatch, folder, scored=(100, 50), stage=TrainerFn.TESTING, ckpt_path=None):
        self.asked = []
        documents = [Document("a", 100, 40, 600), Document("b", 50, 20, 300)]
        self.model = SimpleNamespace(
            score=Score(documents), context_lens=lambda n: torch.arange(1, n + 1), loaded_from=None, exported=None
        )
        for number, n in enumerate(scored):
            nats = torch.full((1, n), 2.0)
            self.model.score.update(nats, ScoringBatch(nats, nats, torch.tensor([number])))

        def loader(split):
            return SimpleNamespace(
                split=split,
                protocol={"stride": 9},
                documents=documents,
                window_shapes=Counter({(10, 10, True): 1}),
                unigram_nats=lambda: self.asked.append("unigram") or [500.0, 250.0],
            )

        monkeypatch.setattr(
            "llp.evaluation.report.model_protocol", lambda model, path, precision: {"model": "m", "checkpoint": path}
        )
        monkeypatch.setattr(
            "llp.evaluation.report.format_table",
            lambda rows, protocol: f"table of {len(rows)} rows, {len(protocol)} notes",
        )
        certificate = CausalityCheck()
        certificate.outcome = {"causal": True}
        self.trainer = SimpleNamespace(
            state=SimpleNamespace(fn=stage),
            is_global_zero=True,
            test_dataloaders=loader("test"),
            val_dataloaders=loader("validation"),
            callbacks=[object(), certificate],
            ckpt_path=ckpt_path,
            precision="32-true",
            log_dir=None,
            default_root_dir=str(folder),
            limit_test_batches=0.0,
            limit_val_batches=0.5,
        )

    def __call__(self):
        TestReport().teardown(self.trainer, self.model, "any")


def test_a_whole_report_stands_beside_its_baseline_in_its_file(monkeypatch, tmp_path, capsys):
    reported = Reported(monkeypatch, tmp_path)
    reported()
    content = checked_json((tmp_path / "test.json").read_text())
    assert content["protocol"] == {
        "model": "m",
        "checkpoint": None,
        "stride": 9,
        "complete": True,
        "context_least": None,
        "context_mean": 5.5,
        "context_greatest": 10,
        "certificate": {"causal": True},
    }
    assert [(row["split"], row["document"], row["tokens"]) for row in content["rows"]] == [
        ("test", None, 150), ("test", "a", 100), ("test", "b", 50)
    ]  # fmt: skip
    assert [row["loss"] for row in content["rows"]] == [2.0] * 3
    assert [row["unigram_loss"] for row in content["rows"]] == [5.0] * 3
    out = capsys.readouterr().out
    written = f"Written to {tmp_path / 'test.json'} and {tmp_path / 'test.csv'}\n"
    assert out == f"table of 3 rows, 8 notes\n{written}"
    assert (tmp_path / "test.csv").read_text().count("\n") == 4


def test_a_report_of_a_part_says_so_and_has_no_baseline(monkeypatch, tmp_path, capsys):
    (tmp_path / "run/checkpoints").mkdir(parents=True)
    path = str(tmp_path / "run/checkpoints/best.ckpt")
    reported = Reported(monkeypatch, tmp_path, scored=(100, 20), stage=TrainerFn.VALIDATING, ckpt_path=path)
    reported()
    content = checked_json((tmp_path / "run/validation.json").read_text())  # in the run of the checkpoint
    assert content["protocol"] == {"model": "m", "checkpoint": path, "stride": 9, "complete": False}
    assert [(row["split"], row["tokens"]) for row in content["rows"]] == [
        ("validation", 120), ("validation", 100), ("validation", 20)
    ]  # fmt: skip
    assert "unigram_loss" not in content["rows"][0]
    assert reported.asked == []
    expected = "PARTIAL: 120 of 150 tokens were scored; words and bytes are scaled in proportion.\n"
    assert expected in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"checkpoints", "validation.json", "validation.csv"}


@pytest.mark.parametrize("stage", [TrainerFn.FITTING, TrainerFn.PREDICTING])
def test_only_tests_and_validations_of_their_own_report(monkeypatch, tmp_path, capsys, stage):
    Reported(monkeypatch, tmp_path, stage=stage)()
    assert [*tmp_path.iterdir()] == []
    assert capsys.readouterr().out == ""


def test_only_the_first_process_reports_and_all_sum_up(monkeypatch, tmp_path, capsys):
    reported = Reported(monkeypatch, tmp_path)
    reported.trainer.is_global_zero = False
    compute = reported.model.score.compute
    monkeypatch.setattr(reported.model.score, "compute", lambda: reported.asked.append("compute") or compute())
    reported()
    assert reported.asked == ["compute"]
    assert [*tmp_path.iterdir()] == []
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (TrainerFn.TESTING, r"^trainer.limit_test_batches = 0.0: nothing was scored"),
        (TrainerFn.VALIDATING, r"^trainer.limit_val_batches = 0.5: nothing was scored"),
    ],
)
def test_where_nothing_was_scored_there_is_no_report(monkeypatch, tmp_path, stage, message):
    reported = Reported(monkeypatch, tmp_path, stage=stage)
    del reported.model.score
    with pytest.raises(SettingError, match=message):
        reported()
